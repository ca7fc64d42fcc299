// What each of the two node proxies said of a flow, side by side: the evidence behind a lock.

import type { FlowRecord } from "../api/types.js";
import { bytes } from "../model/format.js";
import { Identity, Name } from "./parts.js";

export function Records({ records }: { records: FlowRecord[] }) {
  const sides: ("source" | "destination")[] = ["source", "destination"];
  return (
    <div class="records">
      {sides.map((side) => {
        const own = records.filter((record) => record.reporter === side);
        return (
          <section key={side}>
            <h4>{side === "source" ? "The caller's node proxy" : "The called pod's node proxy"}</h4>
            {own.length === 0 && <p class="muted">said nothing</p>}
            {own.map((record, i) => (
              <dl key={i}>
                <div><dt>Proxy</dt><dd><Name>{record.proxy_node}</Name></dd></div>
                <div><dt>Saw</dt><dd>{record.security === "mutual_tls" ? "mutual TLS" : record.security.replace("_", " ")}, {record.verdict}{record.reason && ` (${record.reason})`}</dd></div>
                {record.policy && <div><dt>Policy</dt><dd><Name>{record.policy}</Name></dd></div>}
                <div><dt>Caller</dt><dd><Identity value={record.source_identity} />{record.source_identity && !record.source_proven && " (claimed)"}</dd></div>
                <div><dt>Called</dt><dd><Identity value={record.destination_identity} />{record.destination_identity && !record.destination_proven && " (claimed)"}</dd></div>
                <div><dt>Bytes</dt><dd>{bytes(record.sent)} sent, {bytes(record.received)} received</dd></div>
              </dl>
            ))}
          </section>
        );
      })}
    </div>
  );
}
