//! The system calls, by seccomp: a list of what is allowed, everything else is EPERM.
//!
//! EPERM and not a kill: libraries probe for calls and have another way when one is refused, and a
//! program that is killed on a rare path loses the work of others. What is refused cannot happen.

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    apply_filter,
};

use crate::profile::{Calls, Network, Profile};
use crate::{Endpoint, SandboxError, step};

pub(crate) fn restrict(profile: &Profile, reachable: &[Endpoint]) -> Result<(), SandboxError> {
    let has = |calls| profile.calls.contains(&calls);
    let mut list = AllowList::default();
    list.calls(EVERYBODY);
    list.calls(EVERYBODY_OLD);
    list.limited_everybody();
    list.memory(has(Calls::LoadLibraries));
    list.opening(has(Calls::WriteFiles));
    list.cloning(has(Calls::Workers));
    list.sockets(profile.network, reachable);
    list.signals(!has(Calls::Workers));
    let groups = [
        (Calls::Accept, ACCEPT),
        (Calls::WriteFiles, WRITE_FILES),
        (Calls::WriteFiles, WRITE_FILES_OLD),
        (Calls::Watch, WATCH),
        (Calls::MemoryFiles, MEMORY_FILES),
        (Calls::Workers, WORKERS),
        (Calls::Workers, WORKERS_OLD),
    ];
    groups.iter().filter(|(group, _)| has(*group)).for_each(|(_, calls)| list.calls(calls));
    if has(Calls::Workers) {
        list.becoming_users();
    }
    install_clone3_fallback()?;
    list.install()
}

/// For a worker of delivery-local, on top of its parent's list.
pub(crate) fn restrict_worker() -> Result<(), SandboxError> {
    let mut list = AllowList::default();
    list.calls(EVERYBODY);
    list.calls(EVERYBODY_OLD);
    list.limited_everybody();
    list.memory(false);
    list.signals(true);
    list.opening(true);
    list.calls(WRITE_FILES);
    list.calls(WRITE_FILES_OLD);
    list.install()
}

/// Memory, time, signals, waiting, and talking over descriptors that are open.
#[rustfmt::skip]
const EVERYBODY: &[libc::c_long] = &[
    // Descriptors.
    libc::SYS_read, libc::SYS_write, libc::SYS_readv, libc::SYS_writev, libc::SYS_pread64,
    libc::SYS_preadv, libc::SYS_preadv2, libc::SYS_close, libc::SYS_lseek, libc::SYS_dup, libc::SYS_dup3,
    libc::SYS_fcntl, libc::SYS_pipe2,
    libc::SYS_recvmsg, libc::SYS_recvfrom, libc::SYS_recvmmsg, libc::SYS_sendmsg, libc::SYS_sendto,
    libc::SYS_sendmmsg, libc::SYS_shutdown, libc::SYS_getsockopt, libc::SYS_setsockopt,
    libc::SYS_getsockname, libc::SYS_getpeername,
    // Waiting.
    libc::SYS_ppoll, libc::SYS_pselect6, libc::SYS_epoll_create1, libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait, libc::SYS_epoll_pwait2, libc::SYS_eventfd2, libc::SYS_timerfd_create,
    libc::SYS_timerfd_settime, libc::SYS_nanosleep, libc::SYS_clock_nanosleep,
    // Looking at files: Landlock says which may be opened.
    libc::SYS_fstat, libc::SYS_newfstatat, libc::SYS_statx, libc::SYS_statfs, libc::SYS_fstatfs,
    libc::SYS_readlinkat, libc::SYS_faccessat, libc::SYS_faccessat2, libc::SYS_getdents64, libc::SYS_getcwd,
    // Memory and threads.
    libc::SYS_munmap, libc::SYS_mremap, libc::SYS_brk, libc::SYS_madvise, libc::SYS_futex,
    libc::SYS_set_robust_list, libc::SYS_get_robust_list, libc::SYS_rseq, libc::SYS_set_tid_address,
    libc::SYS_sched_yield, libc::SYS_sched_getaffinity, libc::SYS_getcpu, libc::SYS_membarrier,
    // Answers to this only come from glibc 2.35 on; older ones do not ask.
    SYS_FUTEX_WAITV,
    // Who and when.
    libc::SYS_getpid, libc::SYS_getppid, libc::SYS_gettid, libc::SYS_getuid, libc::SYS_geteuid,
    libc::SYS_getgid, libc::SYS_getegid, libc::SYS_getgroups, libc::SYS_getresuid, libc::SYS_getresgid,
    libc::SYS_clock_gettime, libc::SYS_clock_getres, libc::SYS_gettimeofday, libc::SYS_getrandom,
    libc::SYS_uname, libc::SYS_sysinfo, libc::SYS_getrusage, libc::SYS_times,
    // Signals, and the end.
    libc::SYS_rt_sigaction, libc::SYS_rt_sigprocmask, libc::SYS_rt_sigreturn, libc::SYS_sigaltstack,
    libc::SYS_rt_sigpending, libc::SYS_restart_syscall, libc::SYS_exit,
    libc::SYS_exit_group,
];

/// The same on x86-64, which still has calls that newer machines never got.
#[cfg(target_arch = "x86_64")]
#[rustfmt::skip]
const EVERYBODY_OLD: &[libc::c_long] = &[
    libc::SYS_poll, libc::SYS_select, libc::SYS_epoll_wait, libc::SYS_epoll_create, libc::SYS_eventfd,
    libc::SYS_dup2, libc::SYS_stat, libc::SYS_lstat, libc::SYS_access, libc::SYS_readlink, libc::SYS_time,
    libc::SYS_getrlimit, libc::SYS_arch_prctl,
];
#[cfg(not(target_arch = "x86_64"))]
const EVERYBODY_OLD: &[libc::c_long] = &[];

const SYS_FUTEX_WAITV: libc::c_long = 449;

const ACCEPT: &[libc::c_long] = &[libc::SYS_accept4, libc::SYS_accept];

#[rustfmt::skip]
const WRITE_FILES: &[libc::c_long] = &[
    libc::SYS_pwrite64, libc::SYS_pwritev, libc::SYS_pwritev2, libc::SYS_fsync, libc::SYS_fdatasync,
    libc::SYS_syncfs, libc::SYS_sync_file_range, libc::SYS_ftruncate, libc::SYS_fallocate, libc::SYS_fadvise64,
    libc::SYS_renameat, libc::SYS_renameat2, libc::SYS_unlinkat, libc::SYS_linkat, libc::SYS_mkdirat,
    libc::SYS_fchmod, libc::SYS_utimensat, libc::SYS_copy_file_range, libc::SYS_sendfile, libc::SYS_flock,
    libc::SYS_umask,
];

#[cfg(target_arch = "x86_64")]
const WRITE_FILES_OLD: &[libc::c_long] =
    &[libc::SYS_rename, libc::SYS_unlink, libc::SYS_link, libc::SYS_mkdir, libc::SYS_rmdir];
#[cfg(not(target_arch = "x86_64"))]
const WRITE_FILES_OLD: &[libc::c_long] = &[];

const WATCH: &[libc::c_long] =
    &[libc::SYS_inotify_init1, libc::SYS_inotify_add_watch, libc::SYS_inotify_rm_watch];

const MEMORY_FILES: &[libc::c_long] = &[libc::SYS_memfd_create];

#[rustfmt::skip]
const WORKERS: &[libc::c_long] = &[
    libc::SYS_wait4, libc::SYS_waitid, libc::SYS_socketpair, libc::SYS_close_range,
    // Of the children, to narrow themselves; a process cannot widen anything by them.
    libc::SYS_setgroups, libc::SYS_setresgid, libc::SYS_capget, libc::SYS_capset,
    libc::SYS_landlock_create_ruleset, libc::SYS_landlock_add_rule, libc::SYS_landlock_restrict_self,
    libc::SYS_seccomp,
];

#[cfg(target_arch = "x86_64")]
const WORKERS_OLD: &[libc::c_long] = &[libc::SYS_fork];
#[cfg(not(target_arch = "x86_64"))]
const WORKERS_OLD: &[libc::c_long] = &[];

/// What `prctl` is needed for: names of threads and of memory, and reading.
#[rustfmt::skip]
const PRCTL: &[libc::c_int] = &[
    libc::PR_SET_NAME, libc::PR_GET_NAME, libc::PR_SET_VMA, libc::PR_GET_DUMPABLE,
    libc::PR_CAPBSET_READ, libc::PR_GET_NO_NEW_PRIVS, libc::PR_GET_PDEATHSIG,
];

/// What the workers' narrowing needs beyond that. (PR_SET_DUMPABLE could widen: its value is checked.)
const PRCTL_WORKERS: &[libc::c_int] = &[libc::PR_SET_NO_NEW_PRIVS, libc::PR_CAP_AMBIENT];

/// What `mknod` may make: a plain file.
const MKNOD_TYPES: libc::mode_t = libc::S_IFMT;

#[derive(Default)]
struct AllowList(BTreeMap<i64, Vec<SeccompRule>>);

/// One condition on an argument, of 32 bits.
struct When(u8, SeccompCmpOp, u64);

impl AllowList {
    fn calls(&mut self, calls: &[libc::c_long]) {
        for &call in calls {
            self.0.insert(call, Vec::new());
        }
    }

    /// Allows a call when every condition holds; several of these for one call are alternatives.
    fn call_when(&mut self, call: libc::c_long, conditions: &[When]) {
        let conditions = conditions.iter().map(|When(argument, operator, value)| {
            SeccompCondition::new(*argument, SeccompCmpArgLen::Dword, operator.clone(), *value)
        });
        // Only an argument number past 5 or an empty list is an error: then the call stays forbidden.
        let rule = conditions.collect::<Result<Vec<_>, _>>().and_then(SeccompRule::new);
        debug_assert!(rule.is_ok());
        if let Ok(rule) = rule {
            self.0.entry(call).or_default().push(rule);
        }
    }

    fn limited_everybody(&mut self) {
        for &option in PRCTL {
            self.call_when(libc::SYS_prctl, &[When(0, SeccompCmpOp::Eq, option as u64)]);
        }
        // Reading limits, not setting them: the new limit is a null pointer, both halves of it.
        let null = SeccompCondition::new(2, SeccompCmpArgLen::Qword, SeccompCmpOp::Eq, 0);
        if let Ok(rule) = null.and_then(|null| SeccompRule::new(vec![null])) {
            self.0.entry(libc::SYS_prlimit64).or_default().push(rule);
        }
        for request in [libc::FIONBIO, libc::FIOCLEX, libc::FIONREAD, libc::TCGETS] {
            self.call_when(libc::SYS_ioctl, &[When(1, SeccompCmpOp::Eq, request & 0xffff_ffff)]);
        }
    }

    fn memory(&mut self, executable: bool) {
        for call in [libc::SYS_mmap, libc::SYS_mprotect] {
            match executable {
                true => self.calls(&[call]),
                false => self.call_when(call, &[When(2, masked(libc::PROT_EXEC), 0)]),
            }
        }
    }

    /// Landlock says which files. Without it, this at least keeps readers from writing.
    fn opening(&mut self, writing: bool) {
        match writing {
            true => {
                self.calls(&[libc::SYS_openat, libc::SYS_openat2]);
                let file = When(2, masked(MKNOD_TYPES as i32), u64::from(libc::S_IFREG));
                self.call_when(libc::SYS_mknodat, &[file]);
            }
            false => {
                let any_writing = libc::O_ACCMODE | libc::O_CREAT | libc::O_TRUNC;
                self.call_when(libc::SYS_openat, &[When(2, masked(any_writing), 0)]);
            }
        }
    }

    /// Signals to threads of its own, of which abort is one. Who forks leaves this to the children: their
    /// ids are not known yet. (Landlock keeps signals inside the program, where the kernel is new enough.)
    fn signals(&mut self, own_alone: bool) {
        match own_alone {
            true => {
                let own = u64::from(std::process::id());
                self.call_when(libc::SYS_tgkill, &[When(0, SeccompCmpOp::Eq, own)]);
            }
            false => self.calls(&[libc::SYS_tgkill]),
        }
    }

    /// Threads for everybody, processes for those that fork.
    fn cloning(&mut self, processes: bool) {
        match processes {
            true => self.calls(&[libc::SYS_clone]),
            false => {
                let thread = libc::CLONE_THREAD as u64;
                self.call_when(libc::SYS_clone, &[When(0, SeccompCmpOp::MaskedEq(thread), thread)]);
            }
        }
        // Answered ENOSYS by the filter below this one.
        self.calls(&[libc::SYS_clone3]);
    }

    fn sockets(&mut self, network: Network, reachable: &[Endpoint]) {
        let has_unix = reachable.iter().any(|server| matches!(server, Endpoint::Unix(_)));
        let has_tcp = reachable.iter().any(|server| matches!(server, Endpoint::Tcp(_)));
        let families: &[libc::c_int] = match network {
            Network::None => return,
            Network::Named => match (has_tcp, has_unix) {
                (false, false) => return,
                (true, false) => &[libc::AF_INET, libc::AF_INET6],
                (false, true) => &[libc::AF_UNIX],
                (true, true) => &[libc::AF_INET, libc::AF_INET6, libc::AF_UNIX],
            },
            Network::Connect | Network::Dns => &[libc::AF_INET, libc::AF_INET6],
            Network::ConnectUnix => &[libc::AF_INET, libc::AF_INET6, libc::AF_UNIX],
        };
        for &family in families {
            let family = When(0, SeccompCmpOp::Eq, family as u64);
            // Landlock knows the ports of TCP and no other: of the named servers, nothing but streams.
            let stream = When(1, masked(0xf), libc::SOCK_STREAM as u64);
            match network {
                Network::Named => self.call_when(libc::SYS_socket, &[family, stream]),
                _ => self.call_when(libc::SYS_socket, &[family]),
            }
        }
        self.calls(&[libc::SYS_connect]);
        if network == Network::Dns {
            self.calls(&[libc::SYS_bind]);
        }
    }

    /// Any user but root, and all three ids: one left alone (-1) would be a way back.
    fn becoming_users(&mut self) {
        let neither = |argument| {
            [When(argument, SeccompCmpOp::Ne, 0), When(argument, SeccompCmpOp::Ne, u64::from(u32::MAX))]
        };
        let conditions: Vec<When> = (0..3).flat_map(neither).collect();
        self.call_when(libc::SYS_setresuid, &conditions);
        for &option in PRCTL_WORKERS {
            self.call_when(libc::SYS_prctl, &[When(0, SeccompCmpOp::Eq, option as u64)]);
        }
        let not_dumpable = When(0, SeccompCmpOp::Eq, libc::PR_SET_DUMPABLE as u64);
        self.call_when(libc::SYS_prctl, &[not_dumpable, When(1, SeccompCmpOp::Eq, 0)]);
    }

    fn install(self) -> Result<(), SandboxError> {
        let (refused, allowed) = (SeccompAction::Errno(libc::EPERM as u32), SeccompAction::Allow);
        install(self.0, refused, allowed)
    }
}

fn masked(bits: libc::c_int) -> SeccompCmpOp {
    SeccompCmpOp::MaskedEq(u64::from(bits as u32))
}

/// clone3 hides its flags behind a pointer, where no filter sees them. Told that the kernel does not have
/// it, glibc takes clone, whose flags we do see.
fn install_clone3_fallback() -> Result<(), SandboxError> {
    let rules = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
    install(rules, SeccompAction::Allow, SeccompAction::Errno(libc::ENOSYS as u32))
}

fn install(
    rules: BTreeMap<i64, Vec<SeccompRule>>,
    otherwise: SeccompAction,
    listed: SeccompAction,
) -> Result<(), SandboxError> {
    let machine = std::env::consts::ARCH.try_into().map_err(step("seccomp: this machine"))?;
    let filter = SeccompFilter::new(rules, otherwise, listed, machine).map_err(step("seccomp filter"))?;
    let program: BpfProgram = filter.try_into().map_err(step("seccomp program"))?;
    apply_filter(&program).map_err(step("seccomp"))
}
