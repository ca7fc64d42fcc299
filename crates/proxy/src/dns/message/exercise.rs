//! What must hold for any two messages, whoever wrote them: for property tests and the fuzz target.

use std::net::IpAddr;

use hickory_proto::op::Message;

use super::super::answer::Answer;
use super::{Belongs, HEADER, Query, Records, SERVFAIL, Unreadable, count, question_end, truncate};

/// Reads `question` as from a client and `answer` as from a name server. Panics where a promise is broken.
pub fn exercise(question: &[u8], answer: &[u8]) {
    for limit in [HEADER, 512, 1232] {
        let short = truncate(answer.to_vec(), limit);
        assert!(short.len() <= limit || answer.len() < HEADER);
        if answer.len() <= limit {
            assert_eq!(short, answer, "what fits is untouched");
        } else {
            let end = question_end(&short).unwrap_or_else(|| panic!("its questions are whole"));
            let records: Vec<usize> = Records::new(&short, end).map(|record| record.end).collect();
            let counted: usize = (1..=3).map(|section| usize::from(count(&short, section))).sum();
            assert_eq!(records.len(), counted, "whole records only");
            assert_eq!(records.last().copied().unwrap_or(end), short.len());
        }
    }
    let query = match Query::parse(question.to_vec().into()) {
        Ok(query) => query,
        Err(Unreadable::Malformed(answer)) => {
            assert!(Message::from_vec(&answer).is_ok());
            return;
        }
        Err(Unreadable::Ignore) => return,
    };
    assert_eq!(&query.with_id(9)[2..], &question[2..], "it is passed on as it is");
    let id = u16::from_be_bytes([question[0], question[1]]);
    if query.belongs(id, answer) != Belongs::No {
        assert_eq!(answer[..2], question[..2]);
    }
    query.fit(answer.to_vec());
    assert_eq!(query.belongs(id, &query.failed(SERVFAIL)), Belongs::Yes);
    if let Some(asked) = query.question() {
        let addresses = (0..60).map(|last| IpAddr::from([10, 0, 0, last])).collect();
        let answered = query.answered(asked, &Answer { alias: None, addresses });
        assert_eq!(query.belongs(id, &answered), Belongs::Yes);
        let fitted = query.fit(answered.clone());
        assert!(fitted.len() <= answered.len() && Message::from_vec(&fitted).is_ok());
        assert_eq!(Message::from_vec(&answered).map(|message| message.answers.len()).ok(), Some(60));
    }
}
