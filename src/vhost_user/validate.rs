// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Whether a message of the frontend has the form that the protocol gives it.
//!
//! The framework looks, too, and says "invalid message" or nothing: a queue of a size that none can
//! have keeps the size that it had. Here it is said what came and what was expected. What the
//! framework accepts otherwise, in messages that are not named here as well, passes.

use vhost::vhost_user::message::{FrontendReq, VhostUserHeaderFlag};

use crate::device::features::{MAX_QUEUE_SIZE, NUM_QUEUES};

/// What is wrong with a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ShapeError {
    /// A number that stands for nothing.
    #[error("message {0} is none of vhost-user's, which are 1 to 44")]
    Unknown(u32),
    /// A message of another version, or an answer.
    #[error("{request:?} comes with flags {flags:#x}, expected 0x1, or 0x9 to ask for an answer")]
    Flags {
        /// The message.
        request: FrontendReq,
        /// Its flags.
        flags: u32,
    },
    /// Too little or too much.
    #[error("{request:?} comes with {bytes} bytes, expected {expected}")]
    Size {
        /// The message.
        request: FrontendReq,
        /// How many bytes it has behind its header.
        bytes: usize,
        /// How many it should have, by what it says itself.
        expected: usize,
    },
    /// A queue that there is not.
    #[error("{request:?} names queue {queue}, expected 0 to {last}", last = NUM_QUEUES - 1)]
    Queue {
        /// The message.
        request: FrontendReq,
        /// The queue.
        queue: u32,
    },
    /// A ring of a size that none can have.
    #[error(
        "queue {queue} is to have {size} descriptors, expected a power of two from 1 to \
         {MAX_QUEUE_SIZE}"
    )]
    QueueSize {
        /// The queue.
        queue: u32,
        /// Its size.
        size: u32,
    },
}

/// Bytes of `VhostUserConfig`: offset, size, flags.
const CONFIG_HEAD: usize = 12;
/// Bytes of `VhostUserMemory`: number of regions, padding.
const MEMORY_HEAD: usize = 8;
/// Bytes of a region in it.
const MEMORY_REGION: usize = 32;

/// Checks a message with these flags and this payload.
///
/// # Errors
/// [`ShapeError`]
pub(super) fn check(request: u32, flags: u32, payload: &[u8]) -> Result<(), ShapeError> {
    use FrontendReq as R;
    let request = R::try_from(request).map_err(|_| ShapeError::Unknown(request))?;
    if flags & !VhostUserHeaderFlag::NEED_REPLY.bits() != 1 {
        return Err(ShapeError::Flags { request, flags });
    }
    let word = |index: usize| {
        let bytes = payload.get(4 * index..).and_then(|rest| rest.first_chunk());
        bytes.map_or(0, |bytes| u32::from_ne_bytes(*bytes))
    };
    let count = |index| usize::try_from(word(index)).unwrap_or(usize::MAX);
    let expected = match request {
        R::GET_FEATURES
        | R::SET_OWNER
        | R::RESET_OWNER
        | R::RESET_DEVICE
        | R::GET_PROTOCOL_FEATURES
        | R::GET_QUEUE_NUM
        | R::GET_MAX_MEM_SLOTS => 0,
        R::SET_FEATURES
        | R::SET_PROTOCOL_FEATURES
        | R::SET_VRING_NUM
        | R::SET_VRING_BASE
        | R::GET_VRING_BASE
        | R::SET_VRING_ENABLE
        | R::SET_VRING_KICK
        | R::SET_VRING_CALL
        | R::SET_VRING_ERR
        | R::SET_DEVICE_STATE_FD => 8,
        R::SET_LOG_BASE => 16,
        R::SET_VRING_ADDR | R::ADD_MEM_REG | R::REM_MEM_REG => 40,
        R::SET_MEM_TABLE => count(0).saturating_mul(MEMORY_REGION).saturating_add(MEMORY_HEAD),
        R::GET_CONFIG | R::SET_CONFIG => count(1).saturating_add(CONFIG_HEAD),
        _ => payload.len(),
    };
    // User-mode Linux sends the regions that it has not, too.
    let spare = request == R::SET_MEM_TABLE && payload.len() > expected;
    if payload.len() != expected && !spare {
        return Err(ShapeError::Size { request, bytes: payload.len(), expected });
    }
    let queue = match request {
        R::SET_VRING_NUM
        | R::SET_VRING_BASE
        | R::GET_VRING_BASE
        | R::SET_VRING_ENABLE
        | R::SET_VRING_ADDR => word(0),
        // The bit beside it says that there is no descriptor.
        R::SET_VRING_KICK | R::SET_VRING_CALL | R::SET_VRING_ERR => u32::from(
            // An u64 in the machine's own byte order.
            payload.first_chunk().map_or(0, |bytes| u64::from_ne_bytes(*bytes)).to_le_bytes()[0],
        ),
        _ => 0,
    };
    if usize::try_from(queue).is_ok_and(|queue| queue >= NUM_QUEUES) {
        return Err(ShapeError::Queue { request, queue });
    }
    if request == R::SET_VRING_NUM {
        let size = count(1);
        if !size.is_power_of_two() || size > MAX_QUEUE_SIZE {
            return Err(ShapeError::QueueSize { queue, size: word(1) });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(request: FrontendReq, payload: &[u8]) -> String {
        check(request as u32, 1, payload).unwrap_err().to_string()
    }

    fn words(words: &[u32]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_ne_bytes()).collect()
    }

    #[test]
    fn what_the_protocol_has_passes() {
        use FrontendReq as R;
        for (request, len) in [(R::GET_FEATURES, 0), (R::SET_LOG_BASE, 16), (R::ADD_MEM_REG, 40)] {
            assert_eq!(check(request as u32, 9, &vec![0; len]), Ok(()), "{request:?}");
        }
        for queue in 0..5 {
            assert_eq!(check(R::SET_VRING_NUM as u32, 1, &words(&[queue, 128])), Ok(()));
            // Without a descriptor.
            let kick = (u64::from(queue) | 1 << 8).to_ne_bytes();
            assert_eq!(check(R::SET_VRING_KICK as u32, 1, &kick), Ok(()));
        }
        let config = [words(&[12, 4, 0]), vec![0; 4]].concat();
        assert_eq!(check(R::SET_CONFIG as u32, 1, &config), Ok(()));
        let table = [words(&[2, 0]), vec![0; 64]].concat();
        assert_eq!(check(R::SET_MEM_TABLE as u32, 1, &table), Ok(()));
        // Of others the framework knows more.
        assert_eq!(check(R::IOTLB_MSG as u32, 1, &[1; 7]), Ok(()));
    }

    #[test]
    fn what_it_has_not_is_told_what_was_expected() {
        use FrontendReq as R;
        assert_eq!(check(45, 1, &[]), Err(ShapeError::Unknown(45)));
        for flags in [0, 2, 5, u32::MAX] {
            let error = ShapeError::Flags { request: R::GET_FEATURES, flags };
            assert_eq!(check(1, flags, &[]), Err(error));
        }
        assert_eq!(said(R::SET_FEATURES, &[0; 7]), "SET_FEATURES comes with 7 bytes, expected 8");
        assert_eq!(said(R::GET_CONFIG, &[]), "GET_CONFIG comes with 0 bytes, expected 12");
        let config = words(&[0, 16, 0]);
        assert_eq!(said(R::SET_CONFIG, &config), "SET_CONFIG comes with 12 bytes, expected 28");
        let endless = said(R::SET_MEM_TABLE, &words(&[u32::MAX, 0]));
        assert!(endless.contains("with 8 bytes, expected 137438953448"), "{endless}");
        let queue = said(R::SET_VRING_ENABLE, &words(&[5, 1]));
        assert_eq!(queue, "SET_VRING_ENABLE names queue 5, expected 0 to 4");
        let call = said(R::SET_VRING_CALL, &0xff_u64.to_ne_bytes());
        assert_eq!(call, "SET_VRING_CALL names queue 255, expected 0 to 4");
        for size in [0, 3, 32769, 65536, u32::MAX] {
            let text = said(R::SET_VRING_NUM, &words(&[1, size]));
            assert!(text.contains("expected a power of two from 1 to 32768"), "{text}");
        }
    }
}
