//! `[[remote]]`: a tier that a server outside the tunnel runs. Types only; what they mean on the wire is the proxy's.

use std::net::IpAddr;
use std::str::FromStr;
use std::time::Duration;

use super::plan::Price;
use crate::secret::Secret;
use crate::tier::Tier;
use crate::zone::Zone;

/// A server that speaks `OpenAI`'s API and stands in for a tier of a node.
#[derive(Clone, Debug, PartialEq)]
pub struct Remote {
    /// What people call it; the node's name in answers, logs and metrics.
    pub name: String,
    /// The tier that it serves.
    pub tier: Tier,
    /// Where it is.
    pub url: RemoteUrl,
    /// `http://` to an address that is not private is all right. Default false.
    pub plain_http: bool,
    /// Its API key.
    pub key: Option<Secret<String>>,
    /// Its name for the model; `None`: the first that it lists.
    pub model: Option<String>,
    /// What clients write; default its own name for the model.
    pub model_id: Option<String>,
    /// Tokens of one request, prompt and answer together; `None`: as it tells, else 8,192.
    pub context: Option<u32>,
    /// Requests that it may have from us at once. Default 4.
    pub slots: u32,
    /// Requests above these that may be sent all the same, because it has a queue of its own. Default 16.
    pub queue_max: u32,
    /// What it takes and makes besides text: `image`, `audio`, `embedding`, `rerank`.
    pub modalities: Vec<String>,
    /// Prompts that go there stay at home. Default: whether its address is private.
    pub local: bool,
    /// Which members of a request it is sent. Default all.
    pub fields: Fields,
    /// The name that it has for the most tokens of an answer. Default `max_tokens`.
    pub max_tokens_field: MaxTokensField,
    /// Certificates believed instead of the system's.
    pub ca_file: Option<std::path::PathBuf>,
    /// Connecting to it. Default 5 s.
    pub connect_timeout: Duration,
    /// Time between two looks at it. Default 10 s.
    pub health_every: Duration,
    /// One look at it. Default 5 s.
    pub health_timeout: Duration,
    /// What it costs us; `None`: nothing, or as `[prices.cloud]` says.
    pub price: Option<Price>,
    /// It sleeps until it is wanted.
    pub burst: Option<Burst>,
}

/// An address that was checked: a scheme, a host, a port, and the path before `/chat/completions`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct RemoteUrl {
    /// `https` instead of `http`.
    pub tls: bool,
    /// A name or an address, without brackets.
    pub host: String,
    /// The port.
    pub port: u16,
    /// `/v1`, without a slash at its end; may be empty.
    pub path: String,
}

impl RemoteUrl {
    /// The `host` header: the port is left out where the scheme implies it.
    pub fn authority(&self) -> String {
        let host = if self.host.contains(':') {
            format!("[{}]", self.host)
        } else {
            self.host.clone()
        };
        let implied = if self.tls { 443 } else { 80 };
        if self.port == implied {
            return host;
        }
        format!("{host}:{}", self.port)
    }
}

impl std::fmt::Display for RemoteUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let scheme = if self.tls { "https" } else { "http" };
        write!(f, "{scheme}://{}{}", self.authority(), self.path)
    }
}

/// This machine, or a network that no router of the internet forwards to (RFC 1918, RFC 4193, RFC 3927, RFC 4291, RFC 6598).
pub fn is_private(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(v4) => {
            let [a, b, ..] = v4.octets();
            let shared = a == 100 && (64..128).contains(&b);
            v4.is_loopback() || v4.is_private() || v4.is_link_local() || shared
        }
        IpAddr::V6(v6) => v6.is_loopback() || v6.is_unique_local() || v6.is_unicast_link_local(),
    }
}

/// Which members of a request a server is sent.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Fields {
    /// All that we know: llama-server, vLLM, Ollama and LM Studio take them or pass over them.
    #[default]
    All,
    /// Only those of `OpenAI`'s own API, for servers that refuse every other.
    OpenAi,
}

/// What a server calls the most tokens of an answer.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum MaxTokensField {
    /// `max_tokens`
    #[default]
    MaxTokens,
    /// `max_completion_tokens`
    MaxCompletionTokens,
}

impl MaxTokensField {
    /// The member's name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::MaxTokens => "max_tokens",
            Self::MaxCompletionTokens => "max_completion_tokens",
        }
    }
}

/// A server that is started when it is wanted and stopped when it is not.
#[derive(Clone, Debug, PartialEq)]
pub struct Burst {
    /// What starts it. May be run where it runs already.
    pub start: Hook,
    /// What stops it; `None`: it stops by itself. May be run where it is stopped already.
    pub stop: Option<Hook>,
    /// The key that `start` and `stop` are sent, when they are addresses.
    pub key: Option<Secret<String>>,
    /// A start that has not answered after this has failed. Default a minute less than the whole request may take, 600 s at most.
    pub ready_timeout: Duration,
    /// How long a start takes, before one was measured. Default 60 s.
    pub takes: Duration,
    /// It is stopped when nobody has wanted it for so long. Default 15 min.
    pub idle_stop: Duration,
    /// When it is kept running though nobody asks; `None`: never.
    pub warm_hours: Option<Hours>,
    /// Whose clocks show them.
    pub zone: Zone,
    /// Starts within an hour, over all proxies of one store. Default 6.
    pub starts_per_hour: u32,
}

/// Hours of every day, such as `08:00-23:30`. May pass midnight; `00:00-24:00` is always.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Hours {
    /// Minutes since midnight.
    from: u16,
    /// The first minute that is not in them any more.
    to: u16,
}

/// The text names no hours of a day.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("hours of a day are two different times such as 08:00-23:00")]
pub struct NoHours;

impl FromStr for Hours {
    type Err = NoHours;

    fn from_str(text: &str) -> Result<Self, NoHours> {
        let (from, to) = text.split_once('-').ok_or(NoHours)?;
        let (from, to) = (minute(from).ok_or(NoHours)?, minute(to).ok_or(NoHours)?);
        let is_some_time = from != to && from < DAY_MINUTES;
        is_some_time.then_some(Self { from, to }).ok_or(NoHours)
    }
}

impl Hours {
    /// Whether a minute of the day lies in them.
    pub const fn holds(self, minute: u16) -> bool {
        if self.from < self.to {
            self.from <= minute && minute < self.to
        } else {
            self.from <= minute || minute < self.to
        }
    }
}

const DAY_MINUTES: u16 = 24 * 60;

/// Minutes since midnight of `HH:MM`, at most `24:00`.
fn minute(text: &str) -> Option<u16> {
    let (hours, minutes) = text.split_once(':')?;
    let number = |digits: &str| {
        let is_whole = digits.len() == 2 && digits.bytes().all(|byte| byte.is_ascii_digit());
        is_whole.then(|| digits.parse::<u16>().ok()).flatten()
    };
    let (hours, minutes) = (number(hours)?, number(minutes)?);
    let total = hours * 60 + minutes;
    (minutes < 60 && total <= DAY_MINUTES).then_some(total)
}

/// What is done to start or stop a server.
#[derive(Clone, Debug, PartialEq)]
pub enum Hook {
    /// An empty POST, with the key.
    Url(RemoteUrl),
    /// A program and its arguments; no shell reads them.
    Command(Vec<String>),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hours_begin_with_their_first_minute_end_before_their_last_and_may_pass_midnight() {
        let [day, night, always, late]: [Hours; 4] =
            ["08:00-23:30", "22:15-06:00", "00:00-24:00", "20:00-00:00"]
                .map(|text| text.parse().unwrap());
        for (minute, expected) in [
            (0, [false, true, true, false]),
            (359, [false, true, true, false]),
            (360, [false, false, true, false]),
            (480, [true, false, true, false]),
            (1_334, [true, false, true, true]),
            (1_335, [true, true, true, true]),
            (1_409, [true, true, true, true]),
            (1_410, [false, true, true, true]),
            (1_439, [false, true, true, true]),
        ] {
            let found = [day, night, always, late].map(|hours| hours.holds(minute));
            assert_eq!(found, expected, "minute {minute}");
        }
    }

    #[test]
    fn what_is_no_time_of_day_is_no_hours() {
        for wrong in [
            "",
            "-",
            "8:00-23:00",
            "08:00",
            "08:00-",
            "08:60-09:00",
            "24:00-08:00",
            "08:00-24:01",
            "08:00-08:00",
            "08:00-23:00 ",
            "+8:00-23:00",
            "08:00–23:00",
        ] {
            assert_eq!(wrong.parse::<Hours>(), Err(NoHours), "{wrong:?}");
        }
    }
}
