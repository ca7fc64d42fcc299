//! The form of a profile that `pprof` and its friends read: a table of strings, and samples that point into it.

use std::collections::HashMap;
use std::time::{Duration, SystemTime};

use prost::Message;

/// A place in a program.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct Line {
    pub(super) function: String,
    pub(super) file: String,
    pub(super) number: i64,
}

/// Where a thread was, the innermost function first.
pub(super) struct Stack {
    /// Its name, where that is told.
    pub(super) thread: Option<String>,
    pub(super) lines: Vec<Line>,
}

/// What the numbers of a profile are.
pub(super) struct Form {
    /// Each number of a stack: of what, and its unit.
    pub(super) kinds: &'static [(&'static str, &'static str)],
    /// The kind that is shown first.
    pub(super) default: &'static str,
    /// How often one is taken, and of what.
    pub(super) period: i64,
    pub(super) period_of: (&'static str, &'static str),
    pub(super) begun: SystemTime,
    pub(super) lasting: Duration,
}

#[derive(Clone, PartialEq, Message)]
struct Profile {
    #[prost(message, repeated, tag = "1")]
    sample_type: Vec<ValueType>,
    #[prost(message, repeated, tag = "2")]
    sample: Vec<Sample>,
    #[prost(message, repeated, tag = "4")]
    location: Vec<Location>,
    #[prost(message, repeated, tag = "5")]
    function: Vec<Function>,
    #[prost(string, repeated, tag = "6")]
    string_table: Vec<String>,
    #[prost(int64, tag = "9")]
    time_nanos: i64,
    #[prost(int64, tag = "10")]
    duration_nanos: i64,
    #[prost(message, optional, tag = "11")]
    period_type: Option<ValueType>,
    #[prost(int64, tag = "12")]
    period: i64,
    #[prost(int64, tag = "14")]
    default_sample_type: i64,
}

#[derive(Clone, Copy, PartialEq, Message)]
struct ValueType {
    #[prost(int64, tag = "1")]
    kind: i64,
    #[prost(int64, tag = "2")]
    unit: i64,
}

#[derive(Clone, PartialEq, Message)]
struct Sample {
    #[prost(uint64, repeated, tag = "1")]
    location_id: Vec<u64>,
    #[prost(int64, repeated, tag = "2")]
    value: Vec<i64>,
    #[prost(message, repeated, tag = "3")]
    label: Vec<Label>,
}

#[derive(Clone, Copy, PartialEq, Message)]
struct Label {
    #[prost(int64, tag = "1")]
    key: i64,
    #[prost(int64, tag = "2")]
    str: i64,
}

#[derive(Clone, PartialEq, Message)]
struct Location {
    #[prost(uint64, tag = "1")]
    id: u64,
    #[prost(message, repeated, tag = "4")]
    line: Vec<LineInfo>,
}

#[derive(Clone, Copy, PartialEq, Message)]
struct LineInfo {
    #[prost(uint64, tag = "1")]
    function_id: u64,
    #[prost(int64, tag = "2")]
    line: i64,
}

#[derive(Clone, Copy, PartialEq, Message)]
struct Function {
    #[prost(uint64, tag = "1")]
    id: u64,
    #[prost(int64, tag = "2")]
    name: i64,
    #[prost(int64, tag = "3")]
    system_name: i64,
    #[prost(int64, tag = "4")]
    filename: i64,
}

/// The strings of a profile; the first is empty, as the form demands.
#[derive(Default)]
struct Strings {
    all: Vec<String>,
    by_text: HashMap<String, i64>,
}

impl Strings {
    fn index(&mut self, text: &str) -> i64 {
        if let Some(index) = self.by_text.get(text) {
            return *index;
        }
        let index = self.all.len() as i64;
        self.all.push(text.to_owned());
        self.by_text.insert(text.to_owned(), index);
        index
    }
}

/// A profile of stacks, each with its numbers.
pub(super) fn encode(stacks: impl Iterator<Item = (Stack, Vec<i64>)>, form: &Form) -> Vec<u8> {
    let mut strings = Strings::default();
    strings.index("");
    let nanos = |duration: Duration| i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX);
    let mut value =
        |(kind, unit): (&str, &str)| ValueType { kind: strings.index(kind), unit: strings.index(unit) };
    let mut profile = Profile {
        sample_type: form.kinds.iter().map(|kind| value(*kind)).collect(),
        period_type: Some(value(form.period_of)),
        period: form.period,
        time_nanos: nanos(form.begun.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()),
        duration_nanos: nanos(form.lasting),
        default_sample_type: strings.index(form.default),
        ..Profile::default()
    };
    let (mut locations, mut functions) = (HashMap::new(), HashMap::new());
    let thread = strings.index("thread");
    for (stack, value) in stacks {
        let mut location_id = Vec::with_capacity(stack.lines.len());
        for line in stack.lines {
            let id = match locations.get(&line) {
                Some(id) => *id,
                None => {
                    let name = strings.index(&line.function);
                    let filename = strings.index(&line.file);
                    let function_id = *functions.entry((name, filename)).or_insert_with(|| {
                        let id = profile.function.len() as u64 + 1;
                        profile.function.push(Function { id, name, system_name: name, filename });
                        id
                    });
                    let id = profile.location.len() as u64 + 1;
                    let info = LineInfo { function_id, line: line.number };
                    profile.location.push(Location { id, line: vec![info] });
                    locations.insert(line, id);
                    id
                }
            };
            location_id.push(id);
        }
        let label = stack.thread.map(|name| Label { key: thread, str: strings.index(&name) });
        profile.sample.push(Sample { location_id, value, label: label.into_iter().collect() });
    }
    profile.string_table = strings.all;
    profile.encode_to_vec()
}

/// The names of the functions in a profile.
#[cfg(test)]
pub(super) fn names(profile: &[u8]) -> Vec<String> {
    let profile = Profile::decode(profile).unwrap();
    let name = |function: &Function| profile.string_table[function.name as usize].clone();
    profile.function.iter().map(name).collect()
}

/// The stacks of a profile by the names of their functions, and their numbers.
#[cfg(test)]
pub(super) fn stacks(profile: &[u8]) -> Vec<(Vec<String>, Vec<i64>)> {
    let profile = Profile::decode(profile).unwrap();
    let name = |id: &u64| {
        let function = profile.location[*id as usize - 1].line[0].function_id;
        profile.string_table[profile.function[function as usize - 1].name as usize].clone()
    };
    let named = |sample: &Sample| (sample.location_id.iter().map(name).collect(), sample.value.clone());
    profile.sample.iter().map(named).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_seen_often_is_written_once() {
        let line = |function: &str| Line { function: function.into(), file: "a.rs".into(), number: 7 };
        let stack = |lines| Stack { thread: Some("worker".into()), lines };
        let both = [
            (stack(vec![line("inner"), line("outer")]), vec![3, 30]),
            (stack(vec![line("outer")]), vec![2, 20]),
        ];
        let form = Form {
            kinds: &[("samples", "count"), ("cpu", "nanoseconds")],
            default: "cpu",
            period: 10,
            period_of: ("cpu", "nanoseconds"),
            begun: SystemTime::UNIX_EPOCH,
            lasting: Duration::from_secs(1),
        };
        let bytes = encode(both.into_iter(), &form);
        let profile = Profile::decode(&*bytes).unwrap();
        assert_eq!((profile.sample.len(), profile.location.len(), profile.function.len()), (2, 2, 2));
        assert_eq!(profile.string_table[0], "");
        assert_eq!(profile.sample[0].location_id, [1, 2], "the innermost first");
        assert_eq!(stacks(&bytes)[0], (vec!["inner".to_owned(), "outer".to_owned()], vec![3, 30]));
        assert_eq!(names(&bytes), ["inner", "outer"]);
        let label = profile.sample[1].label[0];
        let text = |index: i64| profile.string_table[index as usize].as_str();
        assert_eq!((text(label.key), text(label.str)), ("thread", "worker"));
        assert_eq!(text(profile.default_sample_type), "cpu");
    }
}
