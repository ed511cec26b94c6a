//! What TLS may use and trust, no more than an https RPC and downloads need: each algorithm that is named here is linked into the program.

use std::io::ErrorKind;
use std::sync::Arc;

use rustix::rand::{GetRandomFlags, getrandom};
use rustls::crypto::ring::{cipher_suite, kx_group};
use rustls::crypto::{CryptoProvider, GetRandomFailed, KeyProvider, SecureRandom, WebPkiSupportedAlgorithms};
use rustls::pki_types::PrivateKeyDer;
use rustls::sign::SigningKey;
use rustls::{CertificateError, OtherError, SignatureScheme};
use ureq::tls::{Certificate, RootCerts, TlsConfig, TlsProvider};
use webpki::ring as verify;

use crate::journal::{rfc3339, unix_now};

/// The algorithms of a client that never shows a certificate of its own.
pub fn provider() -> CryptoProvider {
    CryptoProvider {
        // Every server of TLS 1.3 must have AES-GCM (RFC 8446, 9.1), and those of 1.2 that are worth talking to have it.
        // ChaCha20-Poly1305 would be the same security again, in 45 KB of assembly.
        cipher_suites: vec![
            cipher_suite::TLS13_AES_256_GCM_SHA384,
            cipher_suite::TLS13_AES_128_GCM_SHA256,
            cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
            cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
            cipher_suite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
            cipher_suite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
        ],
        // P-384 costs next to nothing, as certificates need its arithmetic anyway.
        kx_groups: vec![kx_group::X25519, kx_group::SECP256R1, kx_group::SECP384R1],
        signature_verification_algorithms: SIGNATURES,
        secure_random: &Kernel,
        key_provider: &NoKeys,
    }
}

/// What public and private authorities sign with: ECDSA, RSA from 2048 bits, Ed25519.
static SIGNATURES: WebPkiSupportedAlgorithms = WebPkiSupportedAlgorithms {
    // In certificates. Some authorities leave the parameters of RSA out, which RFC 4055 has everybody accept.
    all: &[
        verify::ECDSA_P256_SHA256,
        verify::ECDSA_P256_SHA384,
        verify::ECDSA_P384_SHA256,
        verify::ECDSA_P384_SHA384,
        verify::ED25519,
        verify::RSA_PSS_2048_8192_SHA256_LEGACY_KEY,
        verify::RSA_PSS_2048_8192_SHA384_LEGACY_KEY,
        verify::RSA_PSS_2048_8192_SHA512_LEGACY_KEY,
        verify::RSA_PKCS1_2048_8192_SHA256,
        verify::RSA_PKCS1_2048_8192_SHA384,
        verify::RSA_PKCS1_2048_8192_SHA512,
        verify::RSA_PKCS1_2048_8192_SHA256_ABSENT_PARAMS,
        verify::RSA_PKCS1_2048_8192_SHA384_ABSENT_PARAMS,
        verify::RSA_PKCS1_2048_8192_SHA512_ABSENT_PARAMS,
    ],
    // In the handshake, best first. In TLS 1.2 the name of an ECDSA scheme tells only the hash, so each has both curves.
    mapping: &[
        (SignatureScheme::ECDSA_NISTP384_SHA384, &[verify::ECDSA_P384_SHA384, verify::ECDSA_P256_SHA384]),
        (SignatureScheme::ECDSA_NISTP256_SHA256, &[verify::ECDSA_P256_SHA256, verify::ECDSA_P384_SHA256]),
        (SignatureScheme::ED25519, &[verify::ED25519]),
        (SignatureScheme::RSA_PSS_SHA512, &[verify::RSA_PSS_2048_8192_SHA512_LEGACY_KEY]),
        (SignatureScheme::RSA_PSS_SHA384, &[verify::RSA_PSS_2048_8192_SHA384_LEGACY_KEY]),
        (SignatureScheme::RSA_PSS_SHA256, &[verify::RSA_PSS_2048_8192_SHA256_LEGACY_KEY]),
        (SignatureScheme::RSA_PKCS1_SHA512, &[verify::RSA_PKCS1_2048_8192_SHA512]),
        (SignatureScheme::RSA_PKCS1_SHA384, &[verify::RSA_PKCS1_2048_8192_SHA384]),
        (SignatureScheme::RSA_PKCS1_SHA256, &[verify::RSA_PKCS1_2048_8192_SHA256]),
    ],
};

/// Random bytes of the kernel.
#[derive(Debug)]
struct Kernel;

impl SecureRandom for Kernel {
    fn fill(&self, mut buf: &mut [u8]) -> Result<(), GetRandomFailed> {
        while !buf.is_empty() {
            match getrandom(&mut *buf, GetRandomFlags::empty()) {
                Ok(n) => buf = buf.get_mut(n..).ok_or(GetRandomFailed)?,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(_) => return Err(GetRandomFailed),
            }
        }
        Ok(())
    }
}

/// We have no key to show, so none is ever loaded, and the code that signs is left out.
#[derive(Debug)]
struct NoKeys;

impl KeyProvider for NoKeys {
    fn load_private_key(&self, _: PrivateKeyDer<'static>) -> Result<Arc<dyn SigningKey>, rustls::Error> {
        Err(rustls::Error::General("there are no client certificates here".to_owned()))
    }
}

/// What a client of ours trusts: the root certificates of this host, else those that are built in.
pub fn config() -> Result<TlsConfig, String> {
    let native = rustls_native_certs::load_native_certs();
    let roots = if native.certs.is_empty() {
        if std::env::var_os("SSL_CERT_FILE").is_some() || std::env::var_os("SSL_CERT_DIR").is_some() {
            // Said by somebody who wants no others.
            return Err("SSL_CERT_FILE or SSL_CERT_DIR names no certificates that can be read".to_owned());
        }
        RootCerts::WebPki
    } else {
        let certs = native.certs.iter().map(|der| Certificate::from_der(der.as_ref()).to_owned());
        RootCerts::Specific(Arc::new(certs.collect()))
    };
    Ok(TlsConfig::builder()
        .provider(TlsProvider::Rustls)
        .root_certs(roots)
        .unversioned_rustls_crypto_provider(Arc::new(provider()))
        .build())
}

/// What is wrong with the other side's TLS, if that is what an error is about, and what to do.
#[expect(clippy::wildcard_enum_match_arm, reason = "the libraries' lists grow, and they tell the rest themselves")]
pub fn explain(error: &ureq::Error) -> Option<String> {
    let tls = match error {
        ureq::Error::Rustls(tls) => tls,
        ureq::Error::Io(e) => e.get_ref()?.downcast_ref::<rustls::Error>()?,
        _ => return None,
    };
    if let rustls::Error::InvalidMessage(_) = tls {
        return Some(format!("it does not speak TLS: is it a server of http? ({tls})"));
    }
    let rustls::Error::InvalidCertificate(certificate) = tls else { return None };
    let clock = rfc3339(unix_now());
    Some(match certificate {
        CertificateError::Expired => format!("its certificate has expired; this host's clock says {clock}, is that right?"),
        CertificateError::ExpiredContext { not_after, .. } => format!(
            "its certificate expired at {}; this host's clock says {clock}, is that right?",
            rfc3339(not_after.as_secs())
        ),
        CertificateError::NotValidYet => {
            format!("its certificate is not valid yet; this host's clock says {clock}, is that right?")
        }
        CertificateError::NotValidYetContext { not_before, .. } => format!(
            "its certificate is valid from {} on; this host's clock says {clock}, is that right?",
            rfc3339(not_before.as_secs())
        ),
        CertificateError::UnknownIssuer => "its certificate is from nobody that this host trusts (UnknownIssuer): install ca-certificates, or the authority's own certificate".to_owned(),
        CertificateError::Other(OtherError(why)) if is_self_signed(why.as_ref()) => "its certificate is one of an authority, as self-signed ones mostly are, and no server's (CaUsedAsEndEntity): it needs one that an authority of this host signed for it".to_owned(),
        CertificateError::Other(OtherError(why)) => format!("its certificate is wrong: {why}"),
        other => format!("its certificate is wrong: {other}"),
    })
}

fn is_self_signed(why: &(dyn std::error::Error + 'static)) -> bool {
    matches!(why.downcast_ref(), Some(webpki::Error::CaUsedAsEndEntity))
}
