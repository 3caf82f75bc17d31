//! macOS and iOS: the footprint of this task.
//!
//! `task_info` and not `proc_pid_rusage`, which gives the same number: the latter is in no header
//! of iOS. No safe wrapper of either gives the footprint on iOS.

use mach2::kern_return::KERN_SUCCESS;
use mach2::message::mach_msg_type_number_t;
use mach2::task::task_info;
use mach2::task_info::{TASK_VM_INFO, task_info_t, task_vm_info};
use mach2::traps::mach_task_self;

use super::Usage;

pub(super) fn usage() -> Option<Usage> {
    let info = vm_info()?;
    Some(Usage {
        counted: info.phys_footprint,
        resident: info.resident_size,
        resident_peak: info.resident_size_peak,
    })
}

/// What is left below the limit at which the system ends the process. macOS sets none.
pub(super) fn available() -> Option<u64> {
    let info = vm_info()?;
    Some(info.limit_bytes_remaining).filter(|&bytes| bytes > 0)
}

/// The kernel's account of this task; what an older kernel does not know is zero.
fn vm_info() -> Option<task_vm_info> {
    const WORDS: usize = size_of::<task_vm_info>() / size_of::<i32>();
    let mut info = task_vm_info::default();
    let mut words = WORDS as mach_msg_type_number_t;
    // SAFETY: `info` has room for `words` words, and the kernel writes no more than that. It is
    // plain integers, for which every bit pattern is a value. The name of the own task is a
    // constant of the process.
    let returned = unsafe {
        let out: task_info_t = (&raw mut info).cast();
        task_info(mach_task_self(), TASK_VM_INFO, out, &raw mut words)
    };
    (returned == KERN_SUCCESS).then_some(info)
}
