//! The way from old ReplicaSets to the new one, one safe step at a time.
//!
//! Pure: given how many pods each ReplicaSet wants and has, which ones to scale now. Every step keeps at most
//! `replicas + surge` pods wanted and at least `replicas - unavailable` pods available; the next step is decided
//! when the pods of this one have shown themselves.

/// What the Deployment asks for.
#[derive(Clone, Debug)]
pub struct Rollout {
    /// Pods wanted.
    pub replicas: i32,
    /// Pods allowed beyond that.
    pub surge: i32,
    /// Pods that may be missing.
    pub unavailable: i32,
    /// First no old pods, then new ones.
    pub recreate: bool,
    /// Old pods that still exist, terminating ones included; only Recreate asks.
    pub old_pods: usize,
    /// Templates are not rolled out, only sizes are kept.
    pub paused: bool,
}

/// A ReplicaSet in numbers.
#[derive(Clone, Debug)]
pub struct Set {
    /// Its name.
    pub name: String,
    /// Pods it wants.
    pub replicas: i32,
    /// Pods it has.
    pub pods: i32,
    /// Pods that are ready.
    pub ready: i32,
    /// Pods that are available.
    pub available: i32,
}

impl Set {
    /// Available pods that it still wants: its status may be older than its size.
    fn serving(&self) -> i32 {
        self.available.min(self.replicas)
    }
}

/// A thing to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Give a ReplicaSet this many pods.
    Scale {
        /// Which one.
        name: String,
        /// How many.
        to: i32,
    },
}

fn scale(set: &Set, to: i32) -> Option<Action> {
    let to = to.max(0);
    (to != set.replicas).then(|| Action::Scale { name: set.name.clone(), to })
}

/// The next steps. `old` is in order of age, oldest first.
pub fn plan(rollout: &Rollout, new: Option<&Set>, old: &[Set]) -> Vec<Action> {
    if rollout.paused {
        // The newest one that has pods is the one whose size follows the Deployment.
        let active =
            new.filter(|new| new.replicas > 0).or_else(|| old.iter().rev().find(|set| set.replicas > 0));
        let others: i32 = old.iter().chain(new).map(|set| set.replicas).sum();
        return active
            .and_then(|active| scale(active, rollout.replicas - (others - active.replicas)))
            .into_iter()
            .collect();
    }
    let Some(new) = new else { return Vec::new() };
    if rollout.recreate {
        let down: Vec<Action> = old.iter().filter_map(|set| scale(set, 0)).collect();
        let waiting = !down.is_empty() || rollout.old_pods > 0;
        return if waiting { down } else { scale(new, rollout.replicas).into_iter().collect() };
    }
    if let Some(action) = grow_new(rollout, new, old) {
        return vec![action];
    }
    shrink_old(rollout, new, old)
}

fn grow_new(rollout: &Rollout, new: &Set, old: &[Set]) -> Option<Action> {
    if new.replicas >= rollout.replicas {
        return scale(new, rollout.replicas);
    }
    let wanted: i32 = new.replicas + old.iter().map(|set| set.replicas).sum::<i32>();
    let room = (rollout.replicas + rollout.surge - wanted).min(rollout.replicas - new.replicas);
    if room > 0 { scale(new, new.replicas + room) } else { None }
}

fn shrink_old(rollout: &Rollout, new: &Set, old: &[Set]) -> Vec<Action> {
    let wanted: i32 = new.replicas + old.iter().map(|set| set.replicas).sum::<i32>();
    let at_least = rollout.replicas - rollout.unavailable;
    // Pods of the new template that do not serve yet count as if they were not there.
    let mut spare = wanted - at_least - (new.replicas - new.serving());
    let mut sizes: Vec<i32> = old.iter().map(|set| set.replicas).collect();
    // First what serves nobody anyway.
    for (size, set) in sizes.iter_mut().zip(old) {
        let idle = (set.replicas - set.serving()).min(spare).max(0);
        *size -= idle;
        spare -= idle;
    }
    let serving: i32 = new.serving() + old.iter().map(Set::serving).sum::<i32>();
    let mut spare = spare.min(serving - at_least);
    for size in &mut sizes {
        let down = (*size).min(spare).max(0);
        *size -= down;
        spare -= down;
    }
    old.iter().zip(sizes).filter_map(|(set, size)| scale(set, size)).collect()
}

#[cfg(test)]
mod tests;
