//! Starts the helper and asks it for sockets. One task owns the line to it, so that a question given up half-way confuses nobody.

use std::io;
use std::mem::MaybeUninit;
use std::net::Ipv6Addr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::io::{Errno, IoSlice, IoSliceMut};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, oneshot};

use super::HELPER_WORD;
use super::hello::{Answer, Ask, How, MESSAGE_BYTES_MAX, SOCKETS_MAX};
use super::tun::{Tun, watched};

/// The helper has this long for each answer.
const ANSWER_MAX: Duration = Duration::from_secs(5);
/// Questions that may wait; more askers wait themselves.
const QUESTIONS_MAX: usize = 64;

/// What the namespace is made with.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) helper: Option<PathBuf>,
    pub(crate) address: Ipv6Addr,
    pub(crate) mtu: usize,
}

/// The way into the namespace.
#[derive(Clone, Debug)]
pub(crate) struct Entrance {
    questions: mpsc::Sender<Question>,
}

enum Question {
    Socket(oneshot::Sender<io::Result<OwnedFd>>),
    Listen(u16, u16, oneshot::Sender<io::Result<OwnedFd>>),
    Lingering(Ipv6Addr, oneshot::Sender<io::Result<usize>>),
}

impl Entrance {
    /// Makes the namespace. In words: how. Fails with what was tried and what the system said.
    pub(crate) async fn open(plan: &Plan) -> io::Result<(Self, Tun, &'static str)> {
        let mtu = u16::try_from(plan.mtu.max(super::registry::LINK_MTU_MIN))
            .map_err(|_| io::ErrorKind::InvalidInput)?;
        let mut line = Line::start(plan.helper.clone())?;
        let ask = Ask::Begin {
            address: plan.address,
            mtu,
        };
        let (answer, descriptors) = line.ask(ask, &[]).await?;
        let Answer::Ready(how) = answer else {
            return Err(refused(answer));
        };
        let mut descriptors = descriptors.into_iter();
        let device = descriptors.next().ok_or_else(garbled)?;
        line.doors = descriptors.collect();
        let tun = Tun::new(device)?;
        let (questions, asked) = mpsc::channel(QUESTIONS_MAX);
        tokio::spawn(line.serve(asked));
        let words = match how {
            How::UserNamespace => "a user and a network namespace of its own, no root needed",
            How::Namespace => "a network namespace of its own, made by root",
            How::Shared => {
                "a TUN device beside the host's own: network administration is allowed, namespaces are not"
            }
        };
        Ok((Self { questions }, tun, words))
    }

    /// An unconnected socket.
    pub(super) async fn socket(&self) -> io::Result<OwnedFd> {
        self.put(Question::Socket).await?
    }

    /// A listening socket.
    pub(super) async fn listener(&self, port: u16, backlog: u16) -> io::Result<OwnedFd> {
        self.put(|reply| Question::Listen(port, backlog, reply))
            .await?
    }

    /// Connections that only deliver their last bytes.
    pub(super) async fn lingering(&self, address: Ipv6Addr) -> io::Result<usize> {
        self.put(|reply| Question::Lingering(address, reply))
            .await?
    }

    async fn put<T>(&self, question: impl FnOnce(oneshot::Sender<T>) -> Question) -> io::Result<T> {
        let (reply, answer) = oneshot::channel();
        self.questions
            .send(question(reply))
            .await
            .map_err(|_| ended())?;
        answer.await.map_err(|_| ended())
    }
}

/// The helper and the line to it.
struct Line {
    socket: AsyncFd<OwnedFd>,
    child: Option<Child>,
    program: Option<PathBuf>,
    /// What lets another helper into the namespace.
    doors: Vec<OwnedFd>,
    /// Sockets made ahead.
    stock: Vec<OwnedFd>,
}

impl Drop for Line {
    fn drop(&mut self) {
        // The closed line ends the helper; somebody must take note of its end.
        if let Some(mut child) = self.child.take() {
            drop(child.kill());
            drop(child.wait());
        }
    }
}

impl Line {
    fn start(helper: Option<PathBuf>) -> io::Result<Self> {
        let (ours, theirs) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )?;
        rustix::io::ioctl_fionbio(&ours, true)?;
        // Not by its path: an upgrade may have replaced the file.
        let program = helper.as_deref();
        let program = program.unwrap_or_else(|| Path::new("/proc/self/exe"));
        let child = Command::new(program)
            .arg(HELPER_WORD)
            .env_clear()
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // A terminal's interrupt is for us: the helper ends when we have closed the line.
            .process_group(0)
            .spawn()
            .map_err(|error| {
                let tried = format!("starting the helper {}: {error}", program.display());
                io::Error::new(error.kind(), tried)
            })?;
        Ok(Self {
            socket: watched(ours, Interest::READABLE)?,
            child: Some(child),
            program: helper,
            doors: Vec::new(),
            stock: Vec::new(),
        })
    }

    /// Answers until nobody can ask any more.
    async fn serve(mut self, mut asked: mpsc::Receiver<Question>) {
        while let Some(question) = asked.recv().await {
            // Whoever asked may have given up.
            match question {
                Question::Socket(reply) => drop(reply.send(self.take_socket().await)),
                Question::Listen(port, backlog, reply) => {
                    drop(reply.send(self.one(Ask::Listen { port, backlog }).await));
                }
                Question::Lingering(address, reply) => {
                    let answer = self.ask_surely(Ask::Lingering(address)).await;
                    drop(reply.send(answer.and_then(|(answer, _)| match answer {
                        Answer::Lingering(count) => {
                            Ok(usize::try_from(count).unwrap_or(usize::MAX))
                        }
                        other @ (Answer::Ready(_) | Answer::Sockets | Answer::Failed(..)) => {
                            Err(refused(other))
                        }
                    })));
                }
            }
        }
    }

    async fn take_socket(&mut self) -> io::Result<OwnedFd> {
        if let Some(socket) = self.stock.pop() {
            return Ok(socket);
        }
        let count = u8::try_from(SOCKETS_MAX).unwrap_or(1);
        let (answer, sockets) = self.ask_surely(Ask::Sockets(count)).await?;
        if answer != Answer::Sockets {
            return Err(refused(answer));
        }
        self.stock = sockets;
        self.stock.pop().ok_or_else(garbled)
    }

    async fn one(&mut self, ask: Ask) -> io::Result<OwnedFd> {
        let (answer, mut sockets) = self.ask_surely(ask).await?;
        if answer != Answer::Sockets {
            return Err(refused(answer));
        }
        sockets.pop().ok_or_else(garbled)
    }

    /// Asks; a helper that is no more is replaced by another, which enters the same namespace.
    async fn ask_surely(&mut self, ask: Ask) -> io::Result<(Answer, Vec<OwnedFd>)> {
        match self.ask(ask, &[]).await {
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::BrokenPipe
                        | io::ErrorKind::TimedOut
                        | io::ErrorKind::ConnectionReset
                ) =>
            {
                tracing::warn!(%error, "the namespace's helper is replaced");
                self.replace().await?;
                self.ask(ask, &[]).await
            }
            outcome => outcome,
        }
    }

    async fn replace(&mut self) -> io::Result<()> {
        let mut line = Self::start(self.program.clone())?;
        let doors: Vec<BorrowedFd<'_>> = self.doors.iter().map(AsFd::as_fd).collect();
        let (answer, _) = line.ask(Ask::Enter, &doors).await?;
        if answer != Answer::Sockets {
            return Err(refused(answer));
        }
        line.doors = std::mem::take(&mut self.doors);
        *self = line;
        Ok(())
    }

    async fn ask(&self, ask: Ask, rights: &[BorrowedFd<'_>]) -> io::Result<(Answer, Vec<OwnedFd>)> {
        tell(self.socket.get_ref().as_fd(), &ask.to_bytes(), rights)?;
        tokio::time::timeout(ANSWER_MAX, self.answer())
            .await
            .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "the helper does not answer"))?
    }

    async fn answer(&self) -> io::Result<(Answer, Vec<OwnedFd>)> {
        let mut bytes = [0; MESSAGE_BYTES_MAX];
        let (length, descriptors) = self
            .socket
            .async_io(Interest::READABLE, |socket| {
                receive(socket.as_fd(), &mut bytes)
            })
            .await?;
        if length == 0 {
            return Err(ended());
        }
        let answer = bytes.get(..length).and_then(Answer::parse);
        Ok((answer.ok_or_else(garbled)?, descriptors))
    }
}

/// Sends one message with descriptors beside it.
pub(super) fn tell(
    line: BorrowedFd<'_>,
    bytes: &[u8],
    rights: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(SOCKETS_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !rights.is_empty() && !control.push(SendAncillaryMessage::ScmRights(rights)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    sendmsg(
        line,
        &[IoSlice::new(bytes)],
        &mut control,
        SendFlags::NOSIGNAL,
    )?;
    Ok(())
}

/// Takes one message with the descriptors beside it; no bytes: the line is closed.
pub(super) fn receive(
    socket: BorrowedFd<'_>,
    bytes: &mut [u8],
) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(SOCKETS_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = loop {
        let mut slices = [IoSliceMut::new(bytes)];
        match recvmsg(socket, &mut slices, &mut control, RecvFlags::CMSG_CLOEXEC) {
            Err(Errno::INTR) => {}
            outcome => break outcome?,
        }
    };
    let descriptors = control
        .drain()
        .filter_map(|message| {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                Some(rights)
            } else {
                None
            }
        })
        .flatten()
        .collect();
    Ok((received.bytes, descriptors))
}

fn refused(answer: Answer) -> io::Error {
    match answer {
        Answer::Failed(number, tried) => {
            let said = io::Error::from_raw_os_error(number);
            io::Error::new(said.kind(), format!("{tried}: {said}"))
        }
        Answer::Ready(_) | Answer::Sockets | Answer::Lingering(_) => garbled(),
    }
}

fn garbled() -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        "the helper's answer makes no sense",
    )
}

fn ended() -> io::Error {
    io::Error::new(
        io::ErrorKind::BrokenPipe,
        "the namespace's helper has ended",
    )
}
