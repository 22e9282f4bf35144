// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Processes that map one file of hugetlbfs, and fault it in against hole punch, fork and unsharing.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Bytes of a huge page.
pub const HUGE_PAGE_BYTES: u64 = 2 << 20;
/// Pages that one page table of huge pages maps, 1 GiB: a file that is mapped is that long.
pub const TABLE_PAGES: u32 = 512;
/// Of the file, the pages behind those that are shared, for private mappings.
pub const PRIVATE_PAGES: u32 = 4;

/// Where a process maps the file.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum Arrangement {
    /// At a multiple of 1 GiB: its page table may be shared.
    #[default]
    Shared,
    /// One huge page behind such a multiple: its page tables are its own.
    Apart,
}

/// What a process does until it is stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Maps the file, touches each page, unmaps it.
    Mapper,
    /// Has the file mapped, and forks children that exit at once.
    Forker,
    /// Writes to pages of the file, and checks what they hold; faults what was punched.
    Writer,
    /// Punches holes into the file.
    Puncher,
    /// Maps the file, checks pages, changes the access of one, unmaps it or drops it from its page
    /// table, checks the others, and unmaps the file.
    Splitter,
    /// Maps pages private and reserved, and forks a child that writes to its copy.
    Private,
}

/// A fault that is planted, so that a check must notice it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Sabotage {
    /// No hole is punched, although it is counted: what was there stays.
    SkipsPunch,
    /// A writer also writes where another one does, in the next page.
    WritesElsewhere,
    /// A private mapping is shared.
    SharesPrivate,
    /// A reserved mapping stays.
    KeepsReservation,
    /// A process does not end when it is stopped.
    IgnoresStop,
    /// The second process maps the file elsewhere than the first.
    MapsApart,
}

impl Sabotage {
    /// Short plans with each fault, and a part of what must be found.
    pub fn planted() -> Vec<(StormPlan, &'static str)> {
        let planted = [
            (Self::SkipsPunch, &[(Role::Writer, 1), (Role::Puncher, 1)][..], "is Stale"),
            (Self::WritesElsewhere, &[(Role::Writer, 2)], "is Foreign"),
            (Self::SharesPrivate, &[(Role::Private, 1)], "private page"),
            (Self::KeepsReservation, &[], "the pool is"),
            (Self::IgnoresStop, &[(Role::Mapper, 1)], "does not end"),
            (Self::MapsApart, &[], "page tables are not as Shared"),
        ];
        let plan = |(sabotage, roles, expected): (Self, &[(Role, u32)], _)| {
            let waits = [Self::IgnoresStop, Self::KeepsReservation].contains(&sabotage);
            let plan = StormPlan {
                pages: 4,
                milliseconds: 300,
                patience_ms: if waits { 500 } else { 10_000 },
                sabotage: Some(sabotage),
                roles: roles.iter().copied().collect(),
                ..StormPlan::default()
            };
            (plan, expected)
        };
        planted.into_iter().map(plan).collect()
    }
}

/// What runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct StormPlan {
    /// Of every choice.
    pub seed: u64,
    /// Where the processes map the file.
    pub arrangement: Arrangement,
    /// Pages of the file that are used, at most [`TABLE_PAGES`] less [`PRIVATE_PAGES`].
    pub pages: u32,
    /// For how long.
    pub milliseconds: u64,
    /// Processes by what they do.
    pub roles: BTreeMap<Role, u32>,
    /// Whether to trace what they wait for; it slows them.
    pub trace: bool,
    /// How long a process may take to end when it is stopped, in milliseconds.
    pub patience_ms: u64,
    /// A planted fault.
    pub sabotage: Option<Sabotage>,
}

impl Default for StormPlan {
    fn default() -> Self {
        Self {
            seed: 1,
            arrangement: Arrangement::Shared,
            pages: 64,
            milliseconds: 1000,
            roles: BTreeMap::new(),
            trace: false,
            patience_ms: 30_000,
            sabotage: None,
        }
    }
}

/// Faults that two processes need to touch every page of the file, one after the other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sharing {
    /// Pages of the file.
    pub pages: u64,
    /// By the first process: one a page.
    pub first: u64,
    /// By the second, which the first forked: one if the page table is shared.
    pub second: u64,
    /// By the second, once it has made a page read-only.
    pub after_protect: u64,
    /// By the second, in another mapping of the whole file.
    pub mapped_again: u64,
    /// By the second in this one, once it has unmapped a page: of the others.
    pub after_unmap: u64,
    /// By the first, after all of this: none.
    pub first_again: u64,
}

/// The counters of the pool of huge pages of 2 MiB, from `/proc/meminfo`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pool {
    /// All pages.
    pub total: u64,
    /// Those that are free.
    pub free: u64,
    /// Of the free ones, those that are promised to a mapping.
    pub reserved: u64,
    /// Pages beyond `nr_hugepages`, freed to the page allocator when they are no longer used.
    pub surplus: u64,
}

/// What processes of a role did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Done {
    /// What the role does once: see [`Role`]. A writer's round is a page.
    pub rounds: u64,
    /// Page faults, of itself and not of children.
    pub faults: u64,
    /// Pages that were checked.
    pub checks: u64,
    /// Checked pages of which the zero was certain: a hole was punched since the last write.
    pub zeros: u64,
    /// Checked pages of which the contents were certain: no hole was punched since the last write.
    pub kept: u64,
    /// Times of accesses that faulted, in nanoseconds, by [`bucket`].
    pub latencies: BTreeMap<u32, u64>,
    /// What was wrong, the first few.
    pub wrong: Vec<String>,
    /// How much was.
    pub wrong_times: u64,
}

impl Done {
    /// Adds what another process did.
    pub fn add(&mut self, other: Self) {
        self.rounds += other.rounds;
        self.faults += other.faults;
        self.checks += other.checks;
        self.zeros += other.zeros;
        self.kept += other.kept;
        for (bucket, times) in other.latencies {
            *self.latencies.entry(bucket).or_default() += times;
        }
        self.wrong.extend(other.wrong);
        self.wrong_times += other.wrong_times;
    }

    /// The time that so many of 1,000 accesses stay below, in nanoseconds, 6 % too long at most; none
    /// if no access faulted.
    pub fn quantile_ns(&self, per_mille: u64) -> Option<u64> {
        let all: u64 = self.latencies.values().sum();
        let wanted = all.saturating_mul(per_mille).div_ceil(1000);
        let mut below = 0;
        let reaches = |(_, times): &(&u32, &u64)| {
            below += **times;
            below >= wanted
        };
        self.latencies.iter().find(reaches).map(|(&bucket, _)| upper_ns(bucket))
    }
}

/// The bucket of a time, sixteen to each power of two.
pub fn bucket(ns: u64) -> u32 {
    let ns = ns.max(16);
    let power = ns.ilog2();
    let step = u32::try_from((ns >> (power - 4)) & 15).unwrap_or(0);
    power * 16 + step
}

/// The longest time of a bucket, in nanoseconds.
fn upper_ns(bucket: u32) -> u64 {
    let (power, step) = (bucket / 16, u64::from(bucket % 16));
    ((17 + step) << power.saturating_sub(4)).saturating_sub(1)
}

/// Waits of one kind for one lock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wait {
    /// What waited: `fault`, `fork`, `punch` and the like.
    pub by: String,
    /// The function that took the lock.
    pub site: String,
    /// How: `read`, `write`, `mutex`, `spin`.
    pub how: String,
    /// The lock, as far as the functions that take it tell.
    pub lock: String,
    /// Waits.
    pub times: u64,
    /// Their sum.
    pub nanoseconds: u64,
    /// The longest.
    pub longest_ns: u64,
}

/// What came of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct StormReport {
    /// For how long the processes ran.
    pub nanoseconds: u64,
    /// Whether two processes share a page table, tried before the others began.
    pub sharing: Sharing,
    /// What they did, by role.
    pub done: BTreeMap<Role, Done>,
    /// Processes that ended by themselves, or not at all.
    pub failed: Vec<String>,
    /// The pool before.
    pub before: Pool,
    /// The pool when all processes have ended and the file is gone.
    pub after: Pool,
    /// What they waited for, the longest first, if it was traced.
    pub waits: Vec<Wait>,
}

impl StormReport {
    /// A role's results.
    pub fn of(&self, role: Role) -> Done {
        self.done.get(&role).cloned().unwrap_or_default()
    }

    /// Everything that a check found, in words.
    pub fn faults_found(&self, arrangement: Arrangement) -> Vec<String> {
        let mut found = self.failed.clone();
        for (role, done) in &self.done {
            if done.wrong_times > 0 {
                let first = done.wrong.first().map_or("", String::as_str);
                found.push(format!("{role:?}, {} times: {first}", done.wrong_times));
            }
        }
        if self.after != self.before {
            found.push(format!("the pool is {:?}, and was {:?}", self.after, self.before));
        }
        found.extend(self.sharing.contradicts(arrangement));
        found
    }
}

impl Sharing {
    /// What does not fit an arrangement.
    pub fn contradicts(&self, arrangement: Arrangement) -> Option<String> {
        let Self { pages, first, second, after_protect, mapped_again, after_unmap, first_again } =
            *self;
        let once = if arrangement == Arrangement::Shared { 1 } else { pages };
        // A mapping of its own page tables keeps what it has.
        let split = |others| if arrangement == Arrangement::Shared { others } else { 0 };
        // Of the page that changed its access the kernel may keep or drop the entry.
        let fits = first == pages
            && second == once
            && (split(pages - 1)..=split(pages).max(1)).contains(&after_protect)
            && mapped_again == once
            && after_unmap == split(pages - 1)
            && first_again == 0;
        (!fits).then(|| format!("page tables are not as {arrangement:?} would be: {self:?}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bucket_is_at_most_a_sixteenth_wide() {
        for ns in [16, 17, 31, 32, 1000, 123_456, 987_654_321, 1 << 40] {
            let upper = upper_ns(bucket(ns));
            assert!(upper >= ns && upper - ns <= ns / 16, "{ns} {upper}");
        }
        assert_eq!(upper_ns(bucket(0)), 16);
    }

    #[test]
    fn quantile_counts_from_the_shortest() {
        let mut done = Done::default();
        assert_eq!(done.quantile_ns(500), None);
        done.latencies = BTreeMap::from([(bucket(100), 99), (bucket(1 << 20), 1)]);
        assert_eq!(done.quantile_ns(500), Some(upper_ns(bucket(100))));
        assert_eq!(done.quantile_ns(990), Some(upper_ns(bucket(100))));
        assert_eq!(done.quantile_ns(1000), Some(upper_ns(bucket(1 << 20))));
    }

    #[test]
    fn sharing_is_told_from_faults() {
        let shared = Sharing {
            pages: 64,
            first: 64,
            second: 1,
            after_protect: 63,
            mapped_again: 1,
            after_unmap: 63,
            first_again: 0,
        };
        assert_eq!(shared.contradicts(Arrangement::Shared), None);
        assert!(shared.contradicts(Arrangement::Apart).is_some());
        let apart =
            Sharing { second: 64, after_protect: 0, mapped_again: 64, after_unmap: 0, ..shared };
        assert_eq!(apart.contradicts(Arrangement::Apart), None);
        assert!(apart.contradicts(Arrangement::Shared).is_some());
        let keeps = Sharing { after_unmap: 0, ..shared };
        assert!(keeps.contradicts(Arrangement::Shared).is_some());
    }

    #[test]
    fn report_names_what_a_check_found() {
        let mut report = StormReport {
            sharing: Sharing {
                pages: 1,
                first: 1,
                second: 1,
                mapped_again: 1,
                ..Default::default()
            },
            ..StormReport::default()
        };
        assert_eq!(report.faults_found(Arrangement::Shared), Vec::<String>::new());
        report.after.reserved = 1;
        report.failed.push("Writer 3 does not end".into());
        let wrong = Done { wrong_times: 2, wrong: vec!["page 5".into()], ..Done::default() };
        report.done.insert(Role::Writer, wrong);
        let found = report.faults_found(Arrangement::Shared).join("\n");
        for part in ["does not end", "Writer, 2 times: page 5", "reserved: 1"] {
            assert!(found.contains(part), "{found}");
        }
    }
}
