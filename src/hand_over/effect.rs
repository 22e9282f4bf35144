// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Which of the messages of a frontend still count.
//!
//! What was set and undone must not be done again: a ring that was stopped lies in memory that the
//! guest uses for something else by now, and whatever stands there would name pages to discard.

use std::collections::BTreeMap;

use vhost::vhost_user::message::{FrontendReq, VhostUserHeaderFlag};

use super::journal::Entry;

use FrontendReq as R;

/// Header of a message: request, flags, size of the payload.
const HEADER: usize = 12;
/// Settings of the connection as a whole, in the order in which the next daemon is told them.
const OF_THE_CONNECTION: [FrontendReq; 6] = [
    R::GET_FEATURES,
    R::GET_PROTOCOL_FEATURES,
    R::SET_PROTOCOL_FEATURES,
    R::SET_OWNER,
    R::SET_BACKEND_REQ_FD,
    R::SET_FEATURES,
];
/// Those of a queue.
const OF_A_QUEUE: [FrontendReq; 7] = [
    R::SET_VRING_NUM,
    R::SET_VRING_BASE,
    R::SET_VRING_ADDR,
    R::SET_VRING_ERR,
    R::SET_VRING_CALL,
    R::SET_VRING_KICK,
    R::SET_VRING_ENABLE,
];
/// The number of a queue in the payload of a message that may come without a descriptor.
const QUEUE: u32 = 0xff;

impl Entry {
    fn word(&self, at: usize) -> u32 {
        let word = self.bytes.get(at..).and_then(|rest| rest.first_chunk());
        word.map_or(0, |word| u32::from_ne_bytes(*word))
    }

    fn request(&self) -> Option<FrontendReq> {
        FrontendReq::try_from(self.word(0)).ok()
    }

    /// The queue that it sets something of.
    fn queue(&self) -> u32 {
        self.word(HEADER) & QUEUE
    }

    /// Where a region lies, how long it is and where the frontend has it.
    fn region(&self) -> &[u8] {
        self.bytes.get(HEADER + 8..HEADER + 32).unwrap_or_default()
    }

    /// Whether it is kept in the journal.
    pub(super) fn counts(&self) -> bool {
        counts(self.word(0))
    }

    /// Whether its frontend waits for an answer.
    pub(super) fn is_waited_for(&self) -> bool {
        let answered =
            [R::GET_FEATURES, R::GET_PROTOCOL_FEATURES, R::GET_VRING_BASE, R::SET_LOG_BASE];
        self.word(4) & VhostUserHeaderFlag::NEED_REPLY.bits() != 0
            || self.request().is_some_and(|request| answered.contains(&request))
    }

    /// Whether it, being `SET_FEATURES`, has the frontend log dirty pages.
    fn logs(&self) -> bool {
        const LOG_ALL: u32 = 1 << 26;
        self.request() == Some(R::SET_FEATURES) && self.word(HEADER) & LOG_ALL != 0
    }

    /// Asks for no answer but that which its request has by itself.
    fn wants_no_reply(mut self) -> Self {
        let flags = self.word(4) & !VhostUserHeaderFlag::NEED_REPLY.bits();
        if let Some(bytes) = self.bytes.get_mut(4..8) {
            bytes.copy_from_slice(&flags.to_ne_bytes());
        }
        self
    }
}

/// Whether a message of this kind changes what the next daemon must be told.
pub(super) fn counts(request: u32) -> bool {
    let Ok(request) = FrontendReq::try_from(request) else { return false };
    let others = [
        R::RESET_OWNER,
        R::RESET_DEVICE,
        R::SET_MEM_TABLE,
        R::ADD_MEM_REG,
        R::REM_MEM_REG,
        R::SET_LOG_BASE,
        R::GET_VRING_BASE,
    ];
    OF_THE_CONNECTION.contains(&request)
        || OF_A_QUEUE.contains(&request)
        || others.contains(&request)
}

/// What of `entries` still counts, in an order that a daemon takes it in, with no reply asked for.
pub(super) fn in_effect(entries: Vec<Entry>) -> Vec<Entry> {
    let mut effect = InEffect::default();
    for entry in entries {
        effect.take(entry);
    }
    effect.in_order().into_iter().map(Entry::wants_no_reply).collect()
}

#[derive(Default)]
struct InEffect {
    connection: BTreeMap<usize, Entry>,
    /// A table, and regions that were added since or removed from it.
    memory: Vec<Entry>,
    log: Option<Entry>,
    queues: BTreeMap<u32, BTreeMap<usize, Entry>>,
}

impl InEffect {
    fn take(&mut self, entry: Entry) {
        let Some(request) = entry.request() else { return };
        let place = |list: &[FrontendReq]| list.iter().position(|other| *other == request);
        match request {
            R::SET_OWNER => {
                self.begin();
                self.memory.clear();
            }
            // The queues are disabled, and the driver has acked nothing.
            R::RESET_OWNER | R::RESET_DEVICE => return self.begin(),
            R::GET_VRING_BASE => return self.stop(entry.queue()),
            R::SET_MEM_TABLE => self.memory.clear(),
            R::REM_MEM_REG => {
                let added = self.memory.iter().position(|other| {
                    other.request() == Some(R::ADD_MEM_REG) && other.region() == entry.region()
                });
                if let Some(added) = added {
                    self.memory.remove(added);
                    return;
                }
            }
            _ => {}
        }
        if let Some(place) = place(&OF_THE_CONNECTION) {
            self.connection.insert(place, entry);
        } else if let Some(place) = place(&OF_A_QUEUE) {
            self.queues.entry(entry.queue()).or_default().insert(place, entry);
        } else if request == R::SET_LOG_BASE {
            self.log = Some(entry);
        } else if matches!(request, R::SET_MEM_TABLE | R::ADD_MEM_REG | R::REM_MEM_REG) {
            self.memory.push(entry);
        }
    }

    /// Nothing runs, and nothing was acked.
    fn begin(&mut self) {
        self.queues.clear();
        self.log = None;
        let acked = OF_THE_CONNECTION.iter().position(|request| *request == R::SET_FEATURES);
        self.connection.retain(|place, _| Some(*place) != acked);
    }

    /// A queue that stops has neither kick nor call, and begins elsewhere.
    fn stop(&mut self, queue: u32) {
        let stays = [R::SET_VRING_NUM, R::SET_VRING_ADDR, R::SET_VRING_ERR, R::SET_VRING_ENABLE];
        if let Some(settings) = self.queues.get_mut(&queue) {
            settings.retain(|place, _| stays.contains(&OF_A_QUEUE[*place]));
        }
    }

    fn in_order(mut self) -> Vec<Entry> {
        // One of a migration that is over may not cover the memory of today.
        self.log = self.log.filter(|_| self.connection.values().any(Entry::logs));
        let connection = self.connection.into_values();
        let queues = self.queues.into_values().flat_map(BTreeMap::into_values);
        connection.chain(self.memory).chain(self.log).chain(queues).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(request: FrontendReq, payload: &[u64]) -> Entry {
        let size = u32::try_from(8 * payload.len()).unwrap();
        // A reply is wanted.
        let mut bytes = [request as u32, 1 | 8, size].map(u32::to_ne_bytes).concat();
        bytes.extend(payload.iter().flat_map(|word| word.to_ne_bytes()));
        Entry { bytes, fds: Vec::new() }
    }

    fn told(entries: Vec<Entry>) -> Vec<(FrontendReq, u32)> {
        let left = in_effect(entries);
        assert!(left.iter().all(|entry| entry.word(4) == 1), "no reply is asked for");
        left.iter().map(|entry| (entry.request().unwrap(), entry.word(HEADER))).collect()
    }

    fn start(queue: u64) -> Vec<Entry> {
        // As QEMU does.
        let order = [
            R::SET_VRING_NUM,
            R::SET_VRING_BASE,
            R::SET_VRING_ADDR,
            R::SET_VRING_KICK,
            R::SET_VRING_CALL,
            R::SET_VRING_ENABLE,
        ];
        order.map(|request| entry(request, &[queue])).into()
    }

    #[test]
    fn last_of_each_setting_is_told_in_order() {
        let mut entries = vec![
            entry(R::GET_FEATURES, &[]),
            entry(R::SET_OWNER, &[]),
            entry(R::SET_FEATURES, &[1]),
            entry(R::SET_FEATURES, &[2]),
            entry(R::SET_MEM_TABLE, &[1]),
            entry(R::SET_MEM_TABLE, &[2]),
        ];
        entries.extend(start(1));
        entries.push(entry(R::SET_VRING_CALL, &[1 | 1 << 8]));
        let expected = [
            (R::GET_FEATURES, 0),
            (R::SET_OWNER, 0),
            (R::SET_FEATURES, 2),
            (R::SET_MEM_TABLE, 2),
            (R::SET_VRING_NUM, 1),
            (R::SET_VRING_BASE, 1),
            (R::SET_VRING_ADDR, 1),
            (R::SET_VRING_CALL, 0x101),
            (R::SET_VRING_KICK, 1),
            (R::SET_VRING_ENABLE, 1),
        ];
        assert_eq!(told(entries), expected);
    }

    #[test]
    fn queue_that_stopped_is_not_started() {
        let mut entries = start(0);
        entries.extend(start(1));
        entries.push(entry(R::GET_VRING_BASE, &[0]));
        let kicks = |entries| {
            let kick = |(request, _): &(FrontendReq, u32)| *request == R::SET_VRING_KICK;
            told(entries).into_iter().filter(kick).map(|(_, queue)| queue).collect::<Vec<_>>()
        };
        assert_eq!(kicks(entries), [1]);
        for reset in [R::RESET_DEVICE, R::SET_OWNER, R::RESET_OWNER] {
            let mut entries = start(0);
            entries.push(entry(reset, &[]));
            assert!(kicks(entries).is_empty(), "{reset:?}");
        }
        let mut entries = start(0);
        entries.push(entry(R::GET_VRING_BASE, &[0]));
        entries.extend(start(0));
        assert_eq!(kicks(entries), [0], "it was started again");
    }

    #[test]
    fn region_that_went_is_not_mapped() {
        let region = |request, at| entry(request, &[0, at, 4096, 7]);
        let entries =
            vec![region(R::ADD_MEM_REG, 1), region(R::ADD_MEM_REG, 2), region(R::REM_MEM_REG, 1)];
        let left = in_effect(entries);
        assert_eq!(left.len(), 1);
        assert_eq!(left[0].region(), region(R::ADD_MEM_REG, 2).region());
        // One out of a table goes again.
        let entries = vec![entry(R::SET_MEM_TABLE, &[1]), region(R::REM_MEM_REG, 1)];
        assert_eq!(in_effect(entries).len(), 2);
    }

    #[test]
    fn log_is_told_while_it_is_written() {
        let log = || entry(R::SET_LOG_BASE, &[4096, 0]);
        let features = |features| entry(R::SET_FEATURES, &[features]);
        assert_eq!(in_effect(vec![log(), features(1 << 26)]).len(), 2);
        assert_eq!(in_effect(vec![log(), features(1 << 26), features(0)]).len(), 1);
    }

    #[test]
    fn answer_is_waited_for_where_one_comes() {
        let quiet = |request| entry(request, &[0]).wants_no_reply();
        assert!(entry(R::SET_VRING_NUM, &[0]).is_waited_for());
        assert!(!quiet(R::SET_VRING_NUM).is_waited_for());
        assert!(quiet(R::GET_VRING_BASE).is_waited_for());
    }

    #[test]
    fn questions_are_not_kept() {
        for request in [R::GET_CONFIG, R::SET_CONFIG, R::GET_QUEUE_NUM, R::SET_DEVICE_STATE_FD] {
            assert!(!counts(request as u32), "{request:?}");
        }
        assert!(counts(R::GET_VRING_BASE as u32));
        assert!(!counts(u32::MAX));
    }
}
