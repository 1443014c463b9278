//! Building an output buffer: first everything that changes nothing for the packets, then all redirections at once.

use super::buffer::netlink;
use super::netlink::{Filter, Link, Queue, Refusal};
use super::plug::Action;
use super::step::{Answer, Kernel, Step};
use super::{Failure, OutputError, OutputOptions, Traffic, VIFS_MAX, Vif, name};

/// A vif with its ifb.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) vif: Vif,
    /// The vif's number; `None` when it is gone.
    pub(super) vif_link: Option<u32>,
    /// The ifb's number.
    pub(super) ifb_link: u32,
    /// What becomes of what comes in through the vif.
    pub(super) traffic: Traffic,
    /// Whether the vif's ingress hook is ours.
    pub(super) hooked: bool,
    /// Whether there is a plug of ours for what goes out through the vif.
    pub(super) inbound: bool,
    /// Whether what it held has been let go and may still be on its way.
    pub(super) released: bool,
}

/// A vif and what its ifb will be called.
struct Wanted<'a> {
    vif: &'a Vif,
    link: u32,
    ifb: String,
}

/// Builds it. On an error nothing is held that was not held before, unless it is [`OutputError::Incomplete`].
pub(super) fn install(
    kernel: &mut dyn Kernel,
    vifs: &[Vif],
    options: &OutputOptions,
) -> Result<Vec<Entry>, OutputError> {
    check(vifs, options)?;
    let links = kernel.links().map_err(netlink("listing devices"))?;
    let wanted = vifs.iter().map(|vif| want(vif, &links)).collect::<Result<Vec<_>, _>>()?;
    let mut entries = create(kernel, &wanted)?;
    prepare(kernel, &mut entries, options)?;
    redirect(kernel, &mut entries)?;
    Ok(entries)
}

fn check(vifs: &[Vif], options: &OutputOptions) -> Result<(), OutputError> {
    let unsuitable = |reason: String| Err(OutputError::Unsuitable { reason });
    if vifs.is_empty() || vifs.len() > VIFS_MAX {
        return unsuitable(format!("{} vifs: an output buffer is for 1 to {VIFS_MAX}", vifs.len()));
    }
    if options.limit_bytes == 0 {
        return unsuitable("an output buffer of 0 bytes would drop everything".to_owned());
    }
    if !name::is_vm(&options.vm) {
        return unsuitable(format!("{:?} cannot be written on a device", options.vm));
    }
    for (index, vif) in vifs.iter().enumerate() {
        if !name::is_device(&vif.name) || name::ifb(vif).is_none() {
            return unsuitable(format!("{:?} of domain {} is no vif", vif.name, vif.domid));
        }
        let same = |other: &Vif| other.name == vif.name || name::ifb(other) == name::ifb(vif);
        if vifs.iter().skip(index + 1).any(same) {
            return unsuitable(format!("{} is named twice", vif.name));
        }
    }
    Ok(())
}

fn want<'a>(vif: &'a Vif, links: &[Link]) -> Result<Wanted<'a>, OutputError> {
    let ifb = name::ifb(vif).unwrap_or_default();
    if links.iter().any(|link| link.name == ifb) {
        let reason =
            format!("{ifb} exists: another process holds the output of {}, or left it held", vif.name);
        return Err(OutputError::Unsuitable { reason });
    }
    let link = links.iter().find(|link| link.name == vif.name);
    let link = link.ok_or_else(|| OutputError::NoVif { name: vif.name.clone() })?;
    Ok(Wanted { vif, link: link.index, ifb })
}

fn failure(vif: &Vif, step: &Step, refusal: Refusal) -> Failure {
    Failure { vif: vif.name.clone(), doing: step.to_string(), reason: explain(step, refusal) }
}

/// What the kernel says, and what is missing when it does not know a kind of thing (`net/core/rtnetlink.c` and
/// `net/sched/sch_api.c`, which load the module first if there is one).
fn explain(step: &Step, refusal: Refusal) -> String {
    use rustix::io::Errno;
    let module = match (step, refusal) {
        (Step::CreateIfb { .. }, Refusal::Refused(Errno::OPNOTSUPP)) => "ifb",
        (Step::AddPlug { .. }, Refusal::Refused(Errno::NOENT)) => "sch_plug",
        (Step::AddIngress { .. }, Refusal::Refused(Errno::NOENT)) => "sch_ingress",
        (Step::Redirect { .. }, Refusal::Refused(Errno::NOENT)) => "cls_matchall or act_mirred",
        (Step::AddIngress { .. } | Step::AddPlug { .. }, Refusal::Refused(Errno::EXIST)) => {
            return "somebody else's queueing discipline is there".to_owned();
        }
        _ => return refusal.to_string(),
    };
    format!("{refusal}: the kernel has no module {module}")
}

/// Makes the ifbs.
fn create(kernel: &mut dyn Kernel, wanted: &[Wanted<'_>]) -> Result<Vec<Entry>, OutputError> {
    let steps: Vec<Step> = wanted.iter().map(|wanted| Step::CreateIfb { name: wanted.ifb.clone() }).collect();
    let answers = kernel.carry_out(&steps);
    let mut failed: Vec<Failure> = Vec::new();
    for ((wanted, step), answer) in wanted.iter().zip(&steps).zip(&answers) {
        failed.extend(answer.err().map(|refusal| failure(wanted.vif, step, refusal)));
    }
    let names = || -> Vec<String> { wanted.iter().map(|wanted| wanted.ifb.clone()).collect() };
    let links = match kernel.links() {
        Ok(links) => links,
        Err(error) => {
            let (vif, doing) = (names().join(", "), "listing devices".to_owned());
            failed.push(Failure { vif, doing, reason: error.to_string() });
            return Err(OutputError::NotInstalled { failed, left: names() });
        }
    };
    let mut entries = Vec::new();
    for (wanted, answer) in wanted.iter().zip(answers) {
        let made = links.iter().find(|link| link.name == wanted.ifb && link.kind.as_deref() == Some("ifb"));
        // What was refused but is there now is somebody else's; of a lost answer it is ours, which was not there before.
        match made.filter(|_| !matches!(answer, Err(Refusal::Refused(_)))) {
            Some(link) => entries.push(Entry {
                vif: wanted.vif.clone(),
                vif_link: Some(wanted.link),
                ifb_link: link.index,
                traffic: Traffic::Passes,
                hooked: false,
                inbound: false,
                released: false,
            }),
            None if answer.is_ok() => failed.push(Failure {
                vif: wanted.vif.name.clone(),
                doing: "creating an ifb device".to_owned(),
                reason: "it is not there afterwards".to_owned(),
            }),
            None => {}
        }
    }
    if failed.is_empty() { Ok(entries) } else { Err(roll_back(kernel, &entries, failed)) }
}

/// Everything up to the redirection.
fn prepare(
    kernel: &mut dyn Kernel,
    entries: &mut [Entry],
    options: &OutputOptions,
) -> Result<(), OutputError> {
    let limit_bytes = options.limit_bytes;
    let mut steps = Vec::new();
    for (index, Entry { vif, vif_link, ifb_link: ifb, .. }) in entries.iter().enumerate() {
        let label = Step::Label { link: *ifb, alias: name::label(vif, &options.vm) };
        let mut step = |step: Step| steps.push((index, step));
        step(label);
        step(Step::AddPlug { link: *ifb, limit_bytes });
        step(Step::Up { link: *ifb });
        let Some(link) = *vif_link else { continue };
        step(Step::AddIngress { link });
        if options.hold_inbound {
            // A new plug holds at once; nobody asked for that yet.
            step(Step::AddPlug { link, limit_bytes });
            step(Step::Drive { link, action: Action::ReleaseIndefinite });
        }
    }
    let requests: Vec<Step> = steps.iter().map(|(_, step)| step.clone()).collect();
    let answers = kernel.carry_out(&requests);
    let mut failed = Vec::new();
    for ((index, step), answer) in steps.iter().zip(answers) {
        let Some(entry) = entries.get_mut(*index) else { continue };
        match answer {
            Ok(()) => note(entry, step),
            Err(refusal) => failed.push(failure(&entry.vif, step, refusal)),
        }
    }
    if failed.is_empty() { Ok(()) } else { Err(roll_back(kernel, entries, failed)) }
}

/// Notes what is there to be removed.
fn note(entry: &mut Entry, step: &Step) {
    match step {
        Step::AddIngress { .. } => entry.hooked = true,
        Step::AddPlug { link, .. } if entry.vif_link == Some(*link) => entry.inbound = true,
        _ => {}
    }
}

/// Undoes what changed nothing for the packets yet.
fn roll_back(kernel: &mut dyn Kernel, entries: &[Entry], failed: Vec<Failure>) -> OutputError {
    let mut steps = Vec::new();
    for entry in entries {
        if let Some(link) = entry.vif_link.filter(|_| entry.inbound) {
            steps.push((entry, Step::RemovePlug { link }));
        }
        if let Some(link) = entry.vif_link.filter(|_| entry.hooked) {
            steps.push((entry, Step::RemoveIngress { link }));
        }
        steps.push((entry, Step::RemoveLink { link: entry.ifb_link }));
    }
    let requests: Vec<Step> = steps.iter().map(|(_, step)| step.clone()).collect();
    let answers = kernel.carry_out(&requests);
    let stayed = steps.iter().zip(answers).filter(|(_, answer)| answer.is_err());
    let mut left: Vec<String> = stayed
        .map(|((entry, step), _)| match step {
            Step::RemoveLink { .. } => name::ifb(&entry.vif).unwrap_or_default(),
            _ => entry.vif.name.clone(),
        })
        .collect();
    left.dedup();
    OutputError::NotInstalled { failed, left }
}

/// Redirects everything, and looks whether it is so. From here on nothing is undone: what is held stays held.
fn redirect(kernel: &mut dyn Kernel, entries: &mut [Entry]) -> Result<(), OutputError> {
    let steps: Vec<Step> = entries
        .iter()
        .map(|entry| Step::Redirect { from: entry.vif_link.unwrap_or_default(), to: entry.ifb_link })
        .collect();
    let answers = kernel.carry_out(&steps);
    let mut failed = Vec::new();
    for ((entry, step), answer) in entries.iter_mut().zip(&steps).zip(answers) {
        entry.traffic = redirected(answer);
        failed.extend(answer.err().map(|refusal| failure(&entry.vif, step, refusal)));
    }
    if failed.is_empty() {
        failed = verify(kernel, entries);
    }
    if failed.is_empty() {
        return Ok(());
    }
    let now = entries.iter().map(Entry::state).collect();
    Err(OutputError::Incomplete { doing: "installing the output buffer", failed, now })
}

fn redirected(answer: Answer) -> Traffic {
    match answer {
        Ok(()) => Traffic::Held,
        Err(Refusal::Refused(_)) => Traffic::Passes,
        Err(Refusal::Lost) => Traffic::Unknown,
    }
}

/// Reads back from the kernel that each vif leads to its ifb and each ifb to a plug.
fn verify(kernel: &mut dyn Kernel, entries: &mut [Entry]) -> Vec<Failure> {
    const CHECKING: &str = "checking what was installed";
    let mut failed = Vec::new();
    let queues = kernel.queues();
    for entry in entries {
        let filters = kernel.filters(entry.vif_link.unwrap_or_default());
        let reason = match (&queues, &filters) {
            (Err(error), _) | (_, Err(error)) => error.to_string(),
            (Ok(queues), Ok(filters)) if leads(filters, entry.ifb_link) && plugged(queues, entry) => continue,
            _ => {
                entry.traffic = Traffic::Unknown;
                "it is not there".to_owned()
            }
        };
        failed.push(Failure { vif: entry.vif.name.clone(), doing: CHECKING.to_owned(), reason });
    }
    failed
}

fn plugged(queues: &[Queue], entry: &Entry) -> bool {
    queues.iter().any(|queue| queue.link == entry.ifb_link && queue.is_plug())
}

/// Whether the first filter that packets meet sends all of them to `ifb`.
pub(super) fn leads(filters: &[Filter], ifb: u32) -> bool {
    filters.iter().find(|filter| **filter != Filter::Heading) == Some(&Filter::Redirect { to: ifb })
}
