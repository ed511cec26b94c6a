//! Ranks, slots and quorums of a validator set: pure arithmetic.

/// The fewest validators that can decide a block: N − ⌊(N−1)/3⌋, as go-wbft counts since 2025-10-16 (#160) and go-stablenet
/// with it (#31). Before that it was ⌈2N/3⌉, which is never more: who keeps this one keeps both.
pub fn quorum(validators: usize) -> usize {
    validators - validators.saturating_sub(1) / 3
}

/// The fewest signers without which a clique chain stands still: each signs one block of so many in a row (EIP-225).
pub fn clique_quorum(signers: usize) -> usize {
    if signers == 0 { 0 } else { signers / 2 + 1 }
}

/// How many others must be there before one validator may go down. Where the set tolerates none that is missing, its chain
/// stands still for every restart; then all the others, so that at least no two are down at once.
pub fn needed_others(validators: usize, quorum: usize) -> usize {
    quorum.min(validators.saturating_sub(1))
}

/// Whether a set tolerates that one is down.
pub fn has_slack(validators: usize, quorum: usize) -> bool {
    quorum < validators
}

/// The place of an address in a set that is sorted by address, from 0.
pub fn rank(set: &[String], own: &str) -> Option<usize> {
    set.iter().position(|address| address == own)
}

/// The block at which the first validator's slot begins when a plan does not say: so early that the last one's slot is over
/// just before the height.
pub fn default_start(height: u64, validators: usize, spacing: u64) -> u64 {
    height.saturating_sub(1).saturating_sub((validators as u64).saturating_mul(spacing))
}

/// The head at which the validator of this rank is due; never later than the block before the height.
pub fn due_at(height: u64, start: u64, spacing: u64, rank: usize) -> u64 {
    start.saturating_add((rank as u64).saturating_mul(spacing)).min(height.saturating_sub(1))
}

/// At which head the validator of this rank may go down, from this one on: its turn comes again each time all have had
/// theirs, so that those who missed it do not go together. A turn ends early enough that the next one sees it by what was
/// signed in the last two rounds of the set; in short turns, after half of them.
pub fn next_turn(head: u64, start: u64, spacing: u64, rank: usize, validators: usize) -> u64 {
    let (spacing, rank, validators) = (spacing.max(1), rank as u64, (validators as u64).max(1));
    let begins = |turn: u64| start.saturating_add(turn.saturating_mul(spacing));
    let lasts = spacing.saturating_sub(2 * validators + 2).max(spacing.div_ceil(2));
    let turn = head.saturating_sub(start) / spacing;
    if head >= start && turn % validators == rank && head < begins(turn).saturating_add(lasts) {
        return head;
    }
    // The next one after this turn that is its own.
    let next = if head < start { 0 } else { turn + 1 };
    begins(next + (rank + validators - next % validators) % validators)
}

/// The client that a block's vanity data names, such as `geth v1.13.15`. Every WBFT client tells it decoded, as `[version:
/// v1.13.15, client: geth, go: go1.21.4, os: linux]`. None: it is something else, such as an operator's own words.
pub fn client_of(vanity: &str) -> Option<String> {
    let mut fields = vanity.strip_prefix('[')?.strip_suffix(']')?.split(", ");
    let version = fields.next()?.strip_prefix("version: v")?;
    let name = fields.next()?.strip_prefix("client: ")?;
    let is_version = version.split('.').count() == 3 && version.split('.').all(|number| number.parse::<u8>().is_ok());
    let is_name = !name.is_empty() && name.chars().all(|c| c.is_ascii_graphic());
    (is_version && is_name).then(|| format!("{name} v{version}"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// As go-wbft counted before 2025-10-16.
    fn old_quorum(n: usize) -> usize {
        (2 * n).div_ceil(3)
    }

    #[test]
    fn the_quorum_is_that_of_the_newer_formula_and_never_less_than_the_older_ones() {
        // N, faults tolerated, quorum: NODE.md's figures, worked out by hand.
        for (n, faults, newer, older) in [
            (1, 0, 1, 1),
            (2, 0, 2, 2),
            (3, 0, 3, 2),
            (4, 1, 3, 3),
            (6, 1, 5, 4),
            (7, 2, 5, 5),
            (9, 2, 7, 6),
            (10, 3, 7, 7),
            (13, 4, 9, 9),
            (20, 6, 14, 14),
            (21, 6, 15, 14),
        ] {
            assert_eq!((n - quorum(n), quorum(n), old_quorum(n)), (faults, newer, older), "{n}");
        }
        for n in 1..=30 {
            assert!(quorum(n) >= old_quorum(n) && quorum(n) <= n, "{n}");
            // Any two quorums share more than the faulty ones can be.
            assert!(2 * quorum(n) > n + (n - 1) / 3, "{n}");
            assert_eq!(has_slack(n, quorum(n)), n >= 4, "{n}");
            assert!(needed_others(n, quorum(n)) < n, "{n}: itself is not among the others");
            assert_eq!(needed_others(n, quorum(n)), if n >= 4 { quorum(n) } else { n - 1 }, "{n}");
        }
        assert_eq!((quorum(0), needed_others(0, 0)), (0, 0));
        assert_eq!([1, 2, 3, 4, 5].map(clique_quorum), [1, 2, 2, 3, 3]);
    }

    #[test]
    fn every_validator_has_a_slot_of_its_own_before_the_height() {
        for n in 1..=30_usize {
            let set: Vec<String> = (0..n).map(|i| format!("0x{i:040x}")).collect();
            let start = default_start(10_000, n, 60);
            let slots: Vec<u64> = set.iter().map(|own| due_at(10_000, start, 60, rank(&set, own).unwrap())).collect();
            assert!(slots.windows(2).all(|pair| pair[1] - pair[0] == 60), "{n}: {slots:?}");
            assert_eq!(slots[0], 9_999 - 60 * n as u64, "{n}");
            assert!(slots[n - 1] + 60 <= 9_999, "{n}: the last one has its whole slot");
        }
        assert_eq!(rank(&["0xa".to_owned()], "0xb"), None, "who is in no set has no slot");
        // Near the beginning of a chain, or where a plan says too much, nobody is later than the height allows.
        assert_eq!(default_start(100, 10, 60), 0);
        assert_eq!(due_at(100, 0, 60, 5), 99);
        assert_eq!(due_at(100, u64::MAX, u64::MAX, 3), 99);
        assert_eq!(due_at(1, 0, 60, 0), 0);
    }

    #[test]
    fn who_missed_its_turn_has_the_next_one_to_itself() {
        assert_eq!(
            [0, 99, 100, 149, 150, 159].map(|head| next_turn(head, 100, 60, 0, 4)),
            [100, 100, 100, 149, 340, 340]
        );
        assert_eq!([100, 160, 209, 210, 400].map(|head| next_turn(head, 100, 60, 1, 4)), [160, 160, 209, 400, 400]);
        // Where it is alone, a turn follows upon the other.
        assert_eq!([5, 60, 125, 158, 159].map(|head| next_turn(head, 100, 60, 0, 1)), [100, 100, 125, 160, 160]);
        for n in 1..=30_usize {
            for (start, spacing) in [(0, 1), (7, 2), (1000, 60), (1000, 200)] {
                for head in (0..3 * spacing * n as u64).map(|blocks| start + blocks) {
                    let now: Vec<usize> =
                        (0..n).filter(|rank| next_turn(head, start, spacing, *rank, n) == head).collect();
                    assert!(now.len() <= 1, "{now:?} at {head}, {n} in turns of {spacing}");
                    for rank in 0..n {
                        let turn = next_turn(head, start, spacing, rank, n);
                        assert!(
                            turn >= head && turn <= head + (n as u64 + 1) * spacing,
                            "{rank} of {n} at {head}: {turn}"
                        );
                        assert_eq!(next_turn(turn, start, spacing, rank, n), turn);
                    }
                }
            }
        }
        assert_eq!(next_turn(u64::MAX, u64::MAX, u64::MAX, 3, 4), u64::MAX);
    }

    #[test]
    fn a_set_that_changes_at_an_epoch_gives_each_of_its_members_another_rank() {
        let before = ["0xa", "0xb", "0xd"].map(str::to_owned);
        let after = ["0xa", "0xb", "0xc", "0xd"].map(str::to_owned);
        assert_eq!((rank(&before, "0xd"), rank(&after, "0xd")), (Some(2), Some(3)));
        let slots = |set: &[String]| -> Vec<u64> {
            let start = default_start(1000, set.len(), 10);
            set.iter().map(|own| due_at(1000, start, 10, rank(set, own).unwrap())).collect()
        };
        // Whichever of the two all of them take, no two share a slot.
        for set in [&before[..], &after[..]] {
            let mut slots = slots(set);
            slots.dedup();
            assert_eq!(slots.len(), set.len());
        }
    }

    #[test]
    fn vanity_data_tells_the_client_or_nothing() {
        // As gstable 1.0.0 and 1.0.1 answer for a block of theirs.
        for version in ["v1.0.0", "v1.0.1"] {
            let told = format!("[version: {version}, client: geth, go: go1.26.8, os: linux]");
            assert_eq!(client_of(&told), Some(format!("geth {version}")));
        }
        for none in [
            // The first block, an operator's `--miner.extradata`, one that the node cannot decode.
            "",
            "plain text",
            "Unknown vanityData format, hex: 0xc0",
            "[]",
            "[version: v1.0, client: geth, go: go1.26.8, os: linux]",
            "[version: v1.0.x, client: geth, go: go1.26.8, os: linux]",
            "[version: v1.0.256, client: geth, go: go1.26.8, os: linux]",
            "[version: v1.0.0, client: , go: go1.26.8, os: linux]",
            "[version: v1.0.0, client: \u{1b}[31m, go: go1.26.8, os: linux]",
            "[version: v1.0.0",
        ] {
            assert_eq!(client_of(none), None, "{none:?}");
        }
    }
}
