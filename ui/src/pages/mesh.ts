// The overview, asked once for everybody who shows something of it: the top bar and the page.

import { Poller } from "../poll.js";
import type { Overview } from "../api/types.js";

export const overview = new Poller<Overview>("/api/v1/overview", {}, 4_000);
