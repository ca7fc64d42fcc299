//! Whatever stands in a peer's certificate, in a revocation list and in a request for a certificate.

use std::sync::OnceLock;
use std::time::{Duration, SystemTime};

use control::ca::Authority;
use mesh::Identity;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

/// The first byte says what the rest is.
pub fn run(input: &[u8]) {
    let Some((kind, bytes)) = input.split_first() else { return };
    match kind % 4 {
        0 => {
            for identity in hbone::tls::identities(Some(&[CertificateDer::from(bytes)])) {
                assert_eq!(identity.to_string().parse().as_ref(), Ok(&identity), "read as it is written");
            }
        }
        1 => {
            let lists = hbone::tls::Revocations::default();
            let _ = lists.replace(bytes);
        }
        2 => {
            let text = String::from_utf8_lossy(bytes);
            if let Ok(certificates) = hbone::tls::pem_certificates(&text) {
                hbone::tls::identities(Some(&certificates));
            }
        }
        _ => {
            let text = String::from_utf8_lossy(bytes);
            let life = Duration::from_secs(3600);
            let Ok(chain) = authority().sign(&text, &identity(), life, SystemTime::UNIX_EPOCH) else {
                return;
            };
            let leaf =
                CertificateDer::from_pem_slice(chain[0].as_bytes()).expect("what is signed is a certificate");
            assert_eq!(
                hbone::tls::identities(Some(&[leaf])),
                [identity()],
                "and names who asked, nobody else"
            );
        }
    }
}

fn identity() -> Identity {
    Identity::new("td", "shop", "web").unwrap()
}

fn authority() -> &'static Authority {
    static AUTHORITY: OnceLock<Authority> = OnceLock::new();
    AUTHORITY.get_or_init(|| {
        Authority::self_signed("td", SystemTime::UNIX_EPOCH + Duration::from_secs(1 << 30)).unwrap()
    })
}

pub fn examples() -> Vec<Vec<u8>> {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::default();
    params.subject_alt_names = vec![rcgen::SanType::URI(identity().to_string().try_into().unwrap())];
    let request = params.serialize_request(&key).unwrap().pem().unwrap();
    let chain = authority()
        .sign(
            &request,
            &identity(),
            Duration::from_secs(60),
            SystemTime::UNIX_EPOCH + Duration::from_secs(1 << 30),
        )
        .unwrap();
    let der = CertificateDer::from_pem_slice(chain[0].as_bytes()).unwrap();
    vec![
        [&[0], &der[..]].concat(),
        [&[2], chain.concat().as_bytes()].concat(),
        [&[3], request.as_bytes()].concat(),
        [&[1], "-----BEGIN X509 CRL-----\nMAA=\n-----END X509 CRL-----\n".as_bytes()].concat(),
    ]
}
