//! Two pods of this node (`SAME_NODE=splice`): joined without a tunnel, after all that a tunnel would have checked.
//!
//! Both certificates are at hand, the destination's policies are asked and go on being asked, both ends are accounted
//! for. What is not done is to encrypt, so nothing in here may ever be called mutual TLS. Whatever needs more than two
//! sockets (a waypoint, a gateway, a header of PROXY protocol, a list of revoked certificates that only a handshake
//! looks at) goes through a tunnel as ever.

use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use mesh::{Authority, Connection, HBONE_PORT, Route, Via, Workload, arrive};

use super::dial::join;
use super::judge::{finish, permit};
use super::{Accepted, Home};
use crate::config::SameNode;
use crate::context::Context;
use crate::copy::Meter;
use crate::failure::Failure;
use crate::flows::{Flow, Opening};
use crate::pods::Pod;
use crate::pods::connections::Row;
use crate::sockets::Held;

/// A pod of this node that a call leads to.
pub(super) struct Neighbour {
    pod: Arc<Pod>,
    workload: Arc<Workload>,
    /// Where the application listens.
    target: SocketAddr,
}

impl Neighbour {
    /// The pod that `route` leads to, if it is to be reached without a tunnel.
    pub(super) fn of(context: &Context, route: &Route) -> Option<Self> {
        let config = &context.config;
        let direct = route.via == Via::Direct && route.inner.is_none() && route.hop.port() == HBONE_PORT;
        let Authority::Address(_) = route.authority else { return None };
        if config.same_node != SameNode::Splice || !direct || config.crl.is_some() {
            return None;
        }
        let view = context.views.load();
        let known = |pod: &Arc<Pod>| {
            let named =
                *pod.info.name == *route.workload.name && *pod.info.namespace == *route.workload.namespace;
            let workload = if named { pod.find(&view, config.node.as_deref()) } else { None };
            workload.filter(|workload| workload.uid == route.workload.uid)
        };
        let (pod, workload) = {
            let pods = context.pods.lock();
            let mut served = pods.values().filter_map(|state| state.pod.as_ref().ok());
            served.find_map(|pod| Some((pod.clone(), known(pod)?)))?
        };
        if pod.drain.is_cancelled() || !route.expect.contains(&workload.identity) {
            return None;
        }
        let arrival =
            arrive(&view, &workload, route.hop, &route.authority, config.localhost_app_tunnel).ok()?;
        let plain = arrival.proxy_header.is_none() && arrival.dial == arrival.target;
        plain.then_some(Self { pod, workload, target: arrival.target })
    }

    /// Joins the client with the application, and accounts for it at both ends.
    pub(super) async fn join(
        self,
        home: &Home,
        source: &Workload,
        route: &Route,
        opening: Opening,
        accepted: Accepted,
        called: SocketAddr,
    ) {
        let flows = &home.context.flows;
        let Accepted { socket, peer, .. } = accepted;
        let arriving = Opening::inbound(
            &self.workload,
            route.service.as_deref(),
            Some(source),
            None,
            Some(source.identity.clone()),
            peer,
            self.target,
            None,
        );
        let ends = [opening, arriving].map(|opening| Rc::new(flows.open(opening.within_node(self.target))));
        let row = |original| Row { src: peer, original, actual: self.target, protocol: "TCP" };
        let listed = home.pod.connections.outbound(row(Some(called.to_string())));
        listed.proven(&self.workload.identity);
        let service = route.service.as_ref().map(|service| service.key.hostname.to_string());
        let result = self.carry(home, source, row(service), socket, peer, &ends).await;
        for flow in &ends {
            finish(flow, &result);
        }
    }

    async fn carry(
        &self,
        home: &Home,
        source: &Workload,
        row: Row,
        socket: Held,
        peer: SocketAddr,
        ends: &[Rc<Flow>; 2],
    ) -> Result<(), Failure> {
        let (context, pod) = (&home.context, &self.pod);
        // It ends in peace when the pod does, as what comes through tunnels.
        let _tracked = pod.tasks.token();
        // A handshake would have proven just that: that the authority vouches for both.
        for identity in [&source.identity, &self.workload.identity] {
            context.certs.get(identity).await?;
        }
        let connection = Connection {
            identity: Some(source.identity.clone()),
            source_ip: peer.ip(),
            destination: self.target,
        };
        // Listed first, so that no change of policy slips through in between.
        let mut listed = pod.connections.inbound(row, connection.clone());
        permit(context, pod, &connection).await?;
        let from = pod.sockets.may_borrow_addresses().then(|| peer.ip());
        let application = pod.sockets.connect_on(&home.worker, self.target, from).await;
        let application = application.map_err(Failure::Connect)?;
        for flow in ends {
            flow.established(None);
        }
        let joined = join(home, socket, application, Rc::new(Both(ends.clone())))?;
        tokio::select! {
            biased;
            result = joined.ended() => result.map_err(Failure::Copy),
            verdict = listed.revoked() => Err(Failure::PolicyChange(verdict)),
            () = pod.stop.cancelled() => Err(Failure::Copy(io::ErrorKind::ConnectionReset.into())),
        }
    }
}

/// Counts at both ends.
struct Both([Rc<Flow>; 2]);

impl Meter for Both {
    fn client_to_server(&self, bytes: u64) {
        self.0.iter().for_each(|flow| flow.client_to_server(bytes));
    }

    fn server_to_client(&self, bytes: u64) {
        self.0.iter().for_each(|flow| flow.server_to_client(bytes));
    }
}
