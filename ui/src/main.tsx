// Where it begins.

import { render } from "preact";
import { App } from "./app.js";
import { listen } from "./router.js";
import { watchTheme } from "./theme.js";
import "./styles/base.css";
import "./styles/frame.css";
import "./styles/parts.css";
import "./styles/pages.css";
import "./styles/graph.css";

watchTheme();
listen();
const root = document.getElementById("app");
if (root) render(<App />, root);
