//! The order in which members come, go and are renewed. Pure.

/// What the StatefulSet asks for.
#[derive(Clone, Copy, Debug)]
pub struct Order {
    /// The first ordinal.
    pub first: i32,
    /// How many members.
    pub replicas: i32,
    /// All at once instead of one after the other (renewal is one by one in any case).
    pub parallel: bool,
    /// Members from this ordinal on are renewed when the template changes; `None`: nobody is.
    pub renew_from: Option<i32>,
}

/// A pod of the set.
#[derive(Clone, Copy, Debug, Default)]
pub struct Member {
    /// Its number.
    pub ordinal: i32,
    /// Made of the current template.
    pub current: bool,
    /// Ready.
    pub ready: bool,
    /// Ready for long enough.
    pub available: bool,
    /// On its way out.
    pub terminating: bool,
    /// Ended by itself.
    pub finished: bool,
}

/// A thing to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Make this member.
    Create(i32),
    /// Take this member away.
    Delete(i32),
}

/// The next steps; with an ordered set one at a time.
pub fn plan(order: &Order, members: &[Member]) -> Vec<Action> {
    let find = |ordinal| members.iter().find(|member| member.ordinal == ordinal);
    let wanted = order.first..order.first.saturating_add(order.replicas.max(0));
    let mut actions = Vec::new();
    for ordinal in wanted.clone() {
        let action = match find(ordinal) {
            None => Some(Action::Create(ordinal)),
            Some(member) if member.terminating => None,
            Some(member) if member.finished => Some(Action::Delete(ordinal)),
            Some(member) if member.available => continue,
            // A member of an old template that does not come up would block its own repair.
            Some(member) if !member.current && renews(order, ordinal) => Some(Action::Delete(ordinal)),
            Some(_) => None,
        };
        actions.extend(action);
        if !order.parallel {
            return actions;
        }
    }
    let mut surplus: Vec<&Member> =
        members.iter().filter(|member| !wanted.contains(&member.ordinal)).collect();
    surplus.sort_by_key(|member| std::cmp::Reverse(member.ordinal));
    for member in surplus {
        if !member.terminating {
            actions.push(Action::Delete(member.ordinal));
        }
        if !order.parallel {
            return actions;
        }
    }
    if !actions.is_empty() {
        return actions;
    }
    for ordinal in wanted.rev().filter(|ordinal| renews(order, *ordinal)) {
        match find(ordinal) {
            Some(member) if !member.current && !member.terminating => return vec![Action::Delete(ordinal)],
            Some(member) if member.available && !member.terminating => {}
            _ => return Vec::new(),
        }
    }
    actions
}

fn renews(order: &Order, ordinal: i32) -> bool {
    order.renew_from.is_some_and(|from| ordinal >= from)
}

#[cfg(test)]
mod tests;
