//! What can go wrong on a netlink socket.

use std::fmt;

/// The kernel's refusal of one request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelError {
    /// The error number, positive (`libc::EEXIST`, …).
    pub errno: i32,
    /// The kernel's own words (extended ACK, `NLMSGERR_ATTR_MSG`), where it gave any.
    pub text: Option<String>,
}

impl KernelError {
    /// Whether the object of a delete or get was not there (`ENOENT`, `ESRCH`, `ENODEV`,
    /// `EADDRNOTAVAIL`, `ENXIO`), which a delete counts as success.
    pub fn is_absent(&self) -> bool {
        use rustix::io::Errno as E;
        [E::NOENT, E::SRCH, E::NODEV, E::ADDRNOTAVAIL, E::NXIO].iter().any(|e| e.raw_os_error() == self.errno)
    }

    /// Whether the object of a create was there already (`EEXIST`).
    pub fn is_present(&self) -> bool {
        self.errno == rustix::io::Errno::EXIST.raw_os_error()
    }

    /// Whether this kernel does not know the request (`EOPNOTSUPP`, `EAFNOSUPPORT`, `EPROTONOSUPPORT`).
    pub fn is_unsupported(&self) -> bool {
        use rustix::io::Errno as E;
        [E::OPNOTSUPP, E::AFNOSUPPORT, E::PROTONOSUPPORT].iter().any(|e| e.raw_os_error() == self.errno)
    }

    /// Whether the right to do it is missing (`EPERM`, `EACCES`).
    pub fn is_forbidden(&self) -> bool {
        use rustix::io::Errno as E;
        [E::PERM, E::ACCESS].iter().any(|e| e.raw_os_error() == self.errno)
    }
}

impl fmt::Display for KernelError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let os = std::io::Error::from_raw_os_error(self.errno);
        match &self.text {
            Some(text) => write!(f, "{text} ({os})"),
            None => write!(f, "{os}"),
        }
    }
}

impl std::error::Error for KernelError {}

/// An error of the socket or of one request on it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel refused the request.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The socket failed; nothing is known of the requests in flight.
    #[error("netlink socket: {0}")]
    Socket(#[from] std::io::Error),
    /// An answer of the kernel could not be read.
    #[error("netlink answer of type {message_type} cannot be decoded: {reason}")]
    Decode {
        /// `nlmsg_type` of the answer.
        message_type: u16,
        /// What the decoder said.
        reason: String,
    },
    /// A dump was interrupted by concurrent changes each time it was tried.
    #[error("netlink dump was interrupted {0} times; the kernel's tables change too fast to read")]
    Interrupted(usize),
}

impl Error {
    /// The kernel's refusal, if it is one.
    pub fn kernel(&self) -> Option<&KernelError> {
        match self {
            Error::Kernel(e) => Some(e),
            _ => None,
        }
    }
}
