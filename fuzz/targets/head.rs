//! Whatever stands in the head of a CONNECT request: destination, baggage, forwarded, traceparent, network.

pub fn run(input: &[u8]) {
    hbone::exercise_head(input);
}

pub fn examples() -> Vec<Vec<u8>> {
    let texts = [
        "10.0.0.1:80\nbaggage: k8s.cluster.name=c,k8s.namespace.name=shop,k8s.deployment.name=web,service.name=web,service.version=v1,cloud.region=r,cloud.availability_zone=z\nforwarded: for=\"10.0.0.2:4711\";host=web.shop.svc.cluster.local\ntraceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\nx-forwarded-network: west",
        "[2001:db8::1]:15008\nbaggage: k8s.job.name=a\nbaggage: k8s.cronjob.name=b,k8s.pod.name=c\nforwarded: for=\"[2001:db8::2]:9\"",
        "web.shop.svc.cluster.local:443\nforwarded: host=\"a\";for=unknown;by=x",
    ];
    texts.map(|text| text.as_bytes().to_vec()).to_vec()
}
