//! The rows of the proof as CSV (RFC 4180), for those who must file it.

use crate::model::Target;

/// A header and one line a target.
pub fn csv<'a>(targets: impl IntoIterator<Item = &'a Target>) -> String {
    let mut out = String::from(
        "prometheus,pool,scrape_url,namespace,pod,workload,health,last_scrape,proof,why,source_identity,\
         destination_identity,bytes_seen_by_source,bytes_seen_by_destination,evidence\r\n",
    );
    for target in targets {
        let bytes = |reporter: &str| -> String {
            let records = target.evidence.records.iter().filter(|record| record.reporter == reporter);
            records.map(|record| record.sent + record.received).sum::<u64>().to_string()
        };
        let code = target.why.as_ref().map(|why| serde_json::to_value(why.code).unwrap_or_default());
        let scraped = target.last_scrape.and_then(|at| jiff::Timestamp::from_millisecond(at as i64).ok());
        let fields = [
            &*target.prometheus,
            &*target.pool,
            &target.scrape_url,
            &*target.namespace,
            &*target.pod,
            &*target.workload,
            target.health,
            &scraped.map(|at| at.to_string()).unwrap_or_default(),
            target.proof.word(),
            code.as_ref().and_then(|code| code.as_str()).unwrap_or_default(),
            &*target.source_identity,
            &*target.destination_identity,
            &bytes("source"),
            &bytes("destination"),
            &target.evidence.text,
        ];
        for (i, field) in fields.into_iter().enumerate() {
            if i > 0 {
                out.push(',');
            }
            put(&mut out, field);
        }
        out.push_str("\r\n");
    }
    out
}

/// Quoted where needed. What a spreadsheet would take for a formula gets an apostrophe: names come from strangers.
fn put(out: &mut String, field: &str) {
    let formula = field.starts_with(['=', '+', '-', '@', '\t', '\r']);
    let quoted = formula || field.contains([',', '"', '\n', '\r']);
    if !quoted {
        out.push_str(field);
        return;
    }
    out.push('"');
    if formula {
        out.push('\'');
    }
    out.push_str(&field.replace('"', "\"\""));
    out.push('"');
}
