//! What is learnt: from the files, and from the node itself; and when to look again.

use super::*;
use crate::config::Address;
use crate::job::validators;
use crate::journal::Record;

impl Machine {
    pub(super) fn ask_look(&mut self, out: &mut Vec<Effect>) {
        match self.looking {
            Looking::No => {
                self.looking = Looking::Yes;
                self.look_at = None;
                self.look_wanted = false;
                match &mut self.looks {
                    Some((since, count)) if self.now.saturating_sub(*since) < LOOKS_WINDOW => *count += 1,
                    looks => *looks = Some((self.now, 1)),
                }
                self.looked_last = Some(self.now);
                self.start_job(Role::Look, Job::Look, LOOK_TIME, out);
            }
            Looking::Yes | Looking::Stale => self.looking = Looking::Stale,
        }
    }

    /// Something changed: look now, but not all the time where things change all the time.
    pub(super) fn want_look(&mut self) {
        self.look_wanted = true;
        // A directory and the file in it, an installed release and its plan: a few in a row are looked at as they come.
        let many = self
            .looks
            .is_some_and(|(since, count)| count >= QUICK_LOOKS && self.now.saturating_sub(since) < LOOKS_WINDOW);
        let pause = if many { LOOK_PAUSE } else { Duration::ZERO };
        let soon = self.looked_last.map_or(self.now, |last| self.now.max(last + pause));
        self.look_at = Some(self.look_at.map_or(soon, |at| at.min(soon)));
    }

    pub(super) fn plan_look(&mut self) {
        if self.look_wanted {
            return;
        }
        let pause =
            if self.watching { SAFEGUARD_LOOK.max(self.config.poll_interval) } else { self.config.poll_interval };
        self.look_at = Some(self.now + pause);
    }

    pub(super) fn looked(&mut self, result: Result<Report, String>, out: &mut Vec<Effect>) {
        let stale = self.looking == Looking::Stale;
        self.looking = Looking::No;
        match result {
            Ok(Report::Surveyed(survey)) if !stale || self.state == State::Boot => {
                self.told_errors.remove("look");
                self.surveyed(*survey, out);
            }
            Ok(_) => {}
            Err(why) => self.tell_once("look", &format!("cannot look for plans: {why}"), out),
        }
        if stale {
            self.ask_look(out);
        } else {
            self.plan_look();
        }
        self.decide(out);
    }

    pub(super) fn surveyed(&mut self, survey: Survey, out: &mut Vec<Effect>) {
        out.push(Effect::Watch(if survey.watchable { survey.watch.clone() } else { Vec::new() }));
        if self.state == State::Boot {
            self.known = survey.known.clone();
            self.highest = hold::Highest::on_record(&self.known, self.now);
            if let Some(why) = &survey.known_error {
                say(out, Level::Warn, format!("what was known of the node is lost: {why}"));
            }
            let clean = |record: &Record| record.ended.as_deref() == Some("exit status 0");
            // A node that had blocks and whose end is not on record may have ended in any way.
            let ran = survey.record.is_some() || survey.known.head.is_some();
            self.last_end = ran.then(|| (self.now, survey.record.as_ref().is_some_and(clean)));
            let moved =
                survey.known.machine.is_some() && survey.machine.is_some() && survey.known.machine != survey.machine;
            if moved && self.config.validator_mode && !self.config.moved {
                let why = "this home last ran on another machine, and a validator's key must run in one place only: when it runs nowhere else, start once, as the owner of the home, with --set moved=true";
                return self.fail(Code::Refused, why.to_owned(), out);
            }
            match &survey.journal {
                Ok(journal) => self.journal.clone_from(journal),
                Err(why) => return self.fail(Code::Refused, why.clone(), out),
            }
        }
        self.restoring = survey.restoring;
        if self.reread
            && self.step.is_none()
            && let Ok(journal) = &survey.journal
        {
            self.reread = false;
            self.adopt(journal.clone());
            self.known.head = survey.known.head.clone();
        }
        match &survey.current {
            Ok(release) => self.current = Some(release.clone()),
            Err(why) if self.state == State::Boot => return self.fail(Code::Refused, why.clone(), out),
            Err(why) => self.tell_once("current", why, out),
        }
        self.take_plans(survey, out);
        if self.state == State::Boot {
            if let Some(why) = self.command_in_the_way(&self.args) {
                return self.fail(Code::Refused, why, out);
            }
            if let Some(journal) = &self.journal {
                say(out, Level::Info, format!("upgrade {} was under way: it is resumed", journal.name));
            }
            // A supervisor that was killed may have left its node, or what that started: nothing moves under them.
            if self.restoring || self.journal.as_ref().is_some_and(|j| j.on_probation().is_none()) {
                self.clear(Then::Go, false, None, out);
            } else {
                self.go(out);
            }
        } else {
            self.after_up(out);
        }
    }

    /// Takes over the journal as it is on disk. Starts that could not be counted there count here all the same.
    fn adopt(&mut self, journal: Option<Journal>) {
        let before = std::mem::replace(&mut self.journal, journal);
        if let (Some(journal), Some(before)) = (&mut self.journal, before)
            && (&journal.id, journal.stage) == (&before.id, before.stage)
        {
            journal.starts = journal.starts.max(before.starts);
        }
    }

    pub(super) fn tell_once(&mut self, about: &str, text: &str, out: &mut Vec<Effect>) {
        if self.told_errors.get(about).is_none_or(|told| told != text) {
            self.told_errors.insert(about.to_owned(), text.to_owned());
            say(out, Level::Error, text.to_owned());
        }
    }

    pub(super) fn probe(&mut self, out: &mut Vec<Effect>) {
        let Some(release) = self.life.release.clone().filter(|_| self.state == State::Up && self.probing.is_none())
        else {
            return;
        };
        self.probing = Some(self.life.launched);
        self.probe_began = self.now;
        let addresses = self.addresses();
        let count = u32::try_from(addresses.len()).unwrap_or(1).max(1);
        let spec = ProbeSpec {
            addresses,
            release,
            initial: self.initial.clone(),
            identity: self.life.identity.is_none(),
            validators: self.validators_spec(),
            remember_identity: !self.on_trial() || self.journal.as_ref().is_some_and(|j| j.proven),
        };
        self.start_job(Role::Probe, Job::Probe(spec), PROBE_TIME * count, out);
    }

    /// Where the node that runs may be asked.
    pub(super) fn addresses(&self) -> Vec<Address> {
        node_args::addresses(
            &self.life.args,
            self.home.binary_name(),
            &self.config.rpc_address,
            self.config.rpc_address_given,
        )
    }

    /// What to ask of the validator set: all of it in validator mode, what the proposers run only now and then; else once
    /// in a life, so that a validator without that mode is warned of.
    fn validators_spec(&mut self) -> Option<validators::Spec> {
        if !self.config.validator_mode {
            return self.life.identity.is_none().then(validators::Spec::default);
        }
        let pause = self.config.health_check_interval;
        let clients = self.life.clients_asked.is_none_or(|at| self.now.saturating_sub(at) >= pause);
        if clients {
            self.life.clients_asked = Some(self.now);
        }
        Some(validators::Spec { at: self.slot_blocks(), clients })
    }

    pub(super) fn probed(&mut self, result: Result<Report, String>, out: &mut Vec<Effect>) {
        let asked = self.probing.take();
        self.take_answer(asked, result, out);
        self.tell_head(out);
    }

    fn take_answer(&mut self, asked: Option<Now>, result: Result<Report, String>, out: &mut Vec<Effect>) {
        if self.state != State::Up {
            return;
        }
        if asked != Some(self.life.launched) {
            // The answer of an earlier life says nothing of this one.
            self.probe_at = Some(self.now);
            return;
        }
        match result {
            Ok(Report::Probed(probed)) if probed.foreign.is_some() => {
                let why = probed.foreign.unwrap_or_default();
                let text = format!("{} answers (head {}), but this does not count: {why}", probed.address, probed.head);
                if self.life.foreign.is_none() {
                    say(out, Level::Warn, text.clone());
                }
                self.life.foreign = Some(text.clone());
                self.silent(text);
            }
            Ok(Report::Probed(probed)) => self.heard(*probed, out),
            Ok(_) => self.silent("the probe gave no answer".to_owned()),
            Err(why) => self.silent(why),
        }
        self.plan_probe();
        self.plan_alarm();
        self.watch_for_hang();
        self.consider_ahead(out);
        self.after_up(out);
    }

    pub(super) fn silent(&mut self, why: String) {
        self.life.rpc_error = Some(why);
        self.life.silent_since.get_or_insert(self.now);
        self.life.unanswered = self.life.unanswered.saturating_add(1);
    }

    pub(super) fn heard(&mut self, probed: Probed, out: &mut Vec<Effect>) {
        let life = &mut self.life;
        if let (Some(at), Some(before)) = (life.answered, life.head)
            && probed.head > before
            && let Ok(blocks) = u32::try_from(probed.head - before)
        {
            // The mean of the last stretch and of what was thought before: one late block is no new pace.
            let stretch = self.now.saturating_sub(at) / blocks;
            life.block_time = Some(life.block_time.map_or(stretch, |mean| (mean + stretch) / 2));
        }
        if life.head.is_none() {
            // A release that was not fit may be now: the node has made its data.
            for (_, at) in self.stage_tries.values_mut() {
                *at = self.now;
            }
            say(out, Level::Info, format!("the node answers at {} head={}", probed.address, probed.head));
        }
        let few = |peers: Option<u64>| peers.is_some_and(|peers| peers < self.config.min_peers);
        if few(probed.peers) && (!few(life.peers) || life.head.is_none()) {
            let (peers, least) = (probed.peers.unwrap_or(0), self.config.min_peers);
            say(out, Level::Warn, format!("the node has {peers} peers, fewer than {least} (DAEMON_MIN_PEERS)"));
        }
        life.answered = if life.head == Some(probed.head) { life.answered.or(Some(self.now)) } else { Some(self.now) };
        life.head = Some(probed.head);
        life.first_head.get_or_insert(probed.head);
        life.head_time = probed.head_time;
        life.peers = probed.peers;
        life.syncing = probed.syncing;
        life.latency = probed.latency;
        life.rpc_error = None;
        life.silent_since = None;
        life.foreign = None;
        life.progress = self.now;
        life.unanswered = 0;
        // One that told nothing is asked again.
        if let Some(identity) = probed.identity.filter(|identity| *identity != Identity::default()) {
            if !self.on_trial() {
                if let Some(what) = identity.contradiction(&self.known.identity) {
                    say(out, Level::Warn, format!("the node is not the one that ran here before: {what}"));
                }
                self.known.identity = identity.clone().or(&self.known.identity);
            }
            self.life.identity = Some(identity);
        }
        if probed.version.is_some() {
            self.known.client_version = probed.version;
        }
        if let Some(heard) = probed.validators {
            self.heard_validators(heard, out);
        }
        self.highest = Some(hold::Highest::told(self.highest.take(), probed.head, self.probe_began));
        if let Some(release) = self.life.release.clone() {
            self.known.head = Some(Head { number: probed.head, seen: 0, release });
        }
        if !std::mem::take(&mut self.initial).is_empty() {
            // The probe has judged them: that is to be read before anything is due.
            self.ask_look(out);
        }
    }

    pub(super) fn plan_probe(&mut self) {
        let far = self.config.height_poll_interval;
        let pause = if self.life.unanswered > 0 {
            // A node that comes up is looked at closely at first, a silent one less and less.
            Duration::from_millis(200).saturating_mul(1 << self.life.unanswered.min(10).saturating_sub(1)).min(far)
        } else if self.journal.is_some() {
            far.min(Duration::from_secs(1))
        } else if self.schedule.pending().next().is_none() {
            // Nobody waits for a height. What status tells, what a plan is judged by once there is no supervisor any more,
            // and what a validator signed last, is to be no older all the same.
            far.min(self.config.health_check_interval)
        } else {
            // One that is due already waits for something that is to be seen soon.
            let waits = self.due_plan(self.life.head).is_some_and(|plan| self.gate(&plan).is_some());
            let next = self.next_plan().and_then(|plan| Some(self.due_at(plan).saturating_sub(self.life.head?)));
            let missing = if waits { Some(0) } else { next };
            look_at_head_after(missing, self.life.block_time, far)
        };
        self.probe_at = Some(self.now + pause);
    }

    pub(super) fn plan_alarm(&mut self) {
        let needed = self.state == State::Up && self.life.head.is_none() && self.schedule.pending().next().is_some();
        if !needed {
            self.alarm_at = None;
            if self.life.head.is_some() {
                self.no_head_since = None;
            }
        } else if self.alarm_at.is_none() {
            let since = *self.no_head_since.get_or_insert(self.now);
            self.alarm_at = Some((since + NO_HEAD_ALARM).max(self.now));
        }
    }

    pub(super) fn alarm(&mut self, out: &mut Vec<Effect>) {
        self.alarm_at = Some(self.now + NO_HEAD_REPEAT);
        if let Some(plan) = self.schedule.pending().next() {
            let why = self.life.rpc_error.clone().unwrap_or_else(|| "the node was not asked yet".to_owned());
            say(
                out,
                Level::Error,
                format!(
                    "upgrade {} waits for block {}, but no head is known: {why}; set DAEMON_RPC_ADDRESS or enable the node's RPC",
                    plan.name, plan.height
                ),
            );
        }
    }

    /// Whether the node is well: it lives, and it answers once it has answered.
    pub(super) fn healthy(&self) -> bool {
        self.state == State::Up
            && self.life.silent_since.is_none_or(|_| self.life.answered.is_none())
            && !self.headless()
    }

    /// Whether a plan has been waiting for too long for a head to be known.
    pub(super) fn headless(&self) -> bool {
        self.life.head.is_none()
            && self.schedule.pending().next().is_some()
            && self.no_head_since.is_some_and(|since| self.now.saturating_sub(since) >= NO_HEAD_ALARM)
    }
}
