//! Questions to DNS servers, by `dig`.

use crate::netns::Ns;

/// A question's answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dug {
    /// `NOERROR`, `NXDOMAIN`, …; empty when nobody answered.
    pub status: String,
    /// The data of the answer's records, in their order.
    pub answers: Vec<String>,
    /// Everything that dig printed.
    pub text: String,
}

impl Dug {
    /// The answers in order.
    pub fn sorted(mut self) -> Vec<String> {
        self.answers.sort();
        self.answers
    }
}

/// Asks from a namespace. `question` is what dig takes: `@10.5.7.1 dn1.loden.internal A +tcp`.
pub fn dig(from: &Ns, question: &str) -> Dug {
    let mut argv = vec!["dig", "+time=2", "+tries=1", "+nocookie"];
    argv.extend(question.split_whitespace());
    let text = from.exec(&argv).stdout;
    let status = text.split_once("status: ").and_then(|(_, rest)| rest.split_once(',')).map(|(s, _)| s);
    let answers = text.lines().skip_while(|line| !line.starts_with(";; ANSWER SECTION")).skip(1);
    // Name, TTL, class, type, and the data.
    let data = |line: &str| line.split_whitespace().skip(4).collect::<Vec<_>>().join(" ");
    let answers = answers.take_while(|line| !line.is_empty()).map(data).collect();
    Dug { status: status.unwrap_or_default().to_owned(), answers, text: text.clone() }
}
