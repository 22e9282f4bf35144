//! What outlives a connection: the device as the guest left it and the operator set it, so that a
//! frontend that comes back goes on where it was.

use std::io;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use crate::device::{Balloon, DeviceOptions};
use crate::memory::{Inhibit, MemoryOptions, RegionTable};
use crate::metrics::Counters;

/// What the daemon may ask of a connected frontend, from any thread.
pub trait Frontend: Send + Sync {
    /// Tells the driver that the configuration space has changed.
    ///
    /// # Errors
    /// If the frontend has no channel for it, or it broke.
    fn config_changed(&self) -> io::Result<()>;

    /// Has the driver send its statistics anew.
    ///
    /// # Errors
    /// If the queue's thread cannot be woken.
    fn poll_statistics(&self) -> io::Result<()>;
}

/// One device and everything that is known of it, shared by the connection of the moment, the
/// control socket and the timers.
pub struct State {
    /// What the guest sees.
    pub balloon: Balloon,
    /// What may be discarded at all.
    pub memory: MemoryOptions,
    /// What must not be discarded now.
    pub inhibit: Arc<Inhibit>,
    /// What happened since the start, or since the last reset of the counters.
    pub counters: Arc<Counters>,
    frontend: Mutex<Option<Arc<dyn Frontend>>>,
    /// Weak, so that no file of a guest is open for longer than its frontend is connected.
    regions: Mutex<Weak<RegionTable>>,
}

impl State {
    /// A device that no guest has touched.
    pub fn new(device: DeviceOptions, memory: MemoryOptions) -> Self {
        let counters = Arc::<Counters>::default();
        Self {
            balloon: Balloon::new(device, Arc::clone(&counters)),
            memory,
            inhibit: Arc::default(),
            counters,
            frontend: Mutex::default(),
            regions: Mutex::default(),
        }
    }

    /// The frontend that is connected, if there is one.
    pub fn frontend(&self) -> Option<Arc<dyn Frontend>> {
        self.frontend.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A frontend has connected, or has gone.
    pub fn set_frontend(&self, frontend: Option<Arc<dyn Frontend>>) {
        *self.frontend.lock().unwrap_or_else(PoisonError::into_inner) = frontend;
    }

    /// What backs the guest's memory now; `None` if there is none. To look at, and not to keep.
    pub fn regions(&self) -> Option<Arc<RegionTable>> {
        self.regions.lock().unwrap_or_else(PoisonError::into_inner).upgrade()
    }

    /// The frontend has sent this table of its memory.
    pub fn set_regions(&self, regions: &Arc<RegionTable>) {
        *self.regions.lock().unwrap_or_else(PoisonError::into_inner) = Arc::downgrade(regions);
    }
}
