"""The scripts that `copyless completion` prints. They are made from the parsers, so they know every option."""

from __future__ import annotations

from copyless._typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from copyless.cli.parsing import Parser

__all__ = ["SHELLS", "script"]

_BASH = """\
# bash completion for copyless. In ~/.bashrc: eval "$(copyless completion bash)"
_copyless() {{
    local word="${{COMP_WORDS[COMP_CWORD]}}" before="${{COMP_WORDS[COMP_CWORD-1]}}"
    local command="${{COMP_WORDS[1]}}" words="" i
    COMPREPLY=()
    if [[ $COMP_CWORD -eq 1 ]]; then
        COMPREPLY=($(compgen -W "{commands} --help --version" -- "$word"))
        return
    fi
    if [[ $command == run ]]; then  # after the program, its own arguments: files
        for ((i = 2; i < COMP_CWORD; i++)); do
            case "${{COMP_WORDS[i]}}" in
                -n|-np|--ranks|--bind-to) ((i++)) ;;
                -*) ;;
                *) COMPREPLY=($(compgen -f -- "$word")); return ;;
            esac
        done
    fi
    case "$command $before" in
{values}
    esac
    case "$command" in
{options}
    esac
    if [[ $word == -* ]]; then
        COMPREPLY=($(compgen -W "$words" -- "$word"))
        return
    fi
    case "$command" in
        ls|inspect)
            local IFS=$'\\n' name
            while IFS= read -r name; do
                [[ $name == "$word"* ]] && COMPREPLY+=("$(printf '%q' "$name")")
            done < <(copyless completion --names 2>/dev/null) ;;
        completion) COMPREPLY=($(compgen -W "{shells}" -- "$word")) ;;
        run) COMPREPLY=($(compgen -f -- "$word")) ;;
    esac
}}
complete -o filenames -F _copyless copyless
"""

_ZSH = """\
#compdef copyless
# zsh completion for copyless. In ~/.zshrc, after compinit: eval "$(copyless completion zsh)"
_copyless_names() {{
    local -a names
    names=(${{(f)"$(copyless completion --names 2>/dev/null)"}})
    compadd -a names
}}
_copyless() {{
    local context state line
    local -a commands
    commands=(
{commands}
    )
    if (( CURRENT == 2 )); then
        _describe command commands
        _arguments '--help[Show this message and exit.]' '--version[Print the versions.]'
        return
    fi
    local command=$words[2]
    shift words
    (( CURRENT-- ))
    case $command in
{options}
    esac
}}
if [[ $funcstack[1] == _copyless ]]; then
    _copyless "$@"
else
    compdef _copyless copyless
fi
"""

_FISH = """\
# fish completion for copyless. In ~/.config/fish/config.fish: copyless completion fish | source
complete -c copyless -f
{lines}
complete -c copyless -n '__fish_seen_subcommand_from ls inspect' -a '(copyless completion --names 2>/dev/null)'
complete -c copyless -n '__fish_seen_subcommand_from completion' -a '{shells}'
complete -c copyless -n '__fish_seen_subcommand_from run' -F
"""

SHELLS = ("bash", "zsh", "fish")


class _Option:
    def __init__(self, names: list[str], about: str, takes: bool, choices: list[str]) -> None:
        self.names, self.about, self.takes, self.choices = names, about, takes, choices


def _options(parser: Parser) -> list[_Option]:
    from copyless.cli.parsing import SUPPRESS

    return [
        _Option(list(a.option_strings), a.help or "", a.nargs != 0, [str(choice) for choice in a.choices or ()])
        for a in parser._actions
        if a.option_strings and a.help != SUPPRESS
    ]


def _for_zsh(text: str) -> str:
    """A description inside single quotes: a bracket would end that of an option, a colon the name of a command."""
    for special in "\\[]:":
        text = text.replace(special, f"\\{special}")
    return text.replace("'", "'\\''")


def _for_fish(text: str) -> str:
    """A text inside single quotes."""
    return text.replace("\\", "\\\\").replace("'", "\\'")


def script(shell: str, parsers: Mapping[str, Parser], about: Mapping[str, str]) -> str:
    """The script for a shell: bash, zsh or fish. `about` has one line for each command."""
    return {"bash": _bash, "zsh": _zsh, "fish": _fish}[shell](parsers, about)


def _bash(parsers: Mapping[str, Parser], _: Mapping[str, str]) -> str:
    values, options = [], []
    for command, parser in parsers.items():
        found = _options(parser)
        options.append(f'        {command}) words="{" ".join(name for option in found for name in option.names)}" ;;')
        for option in found:
            cases = "|".join(f'"{command} {name}"' for name in option.names)
            if option.choices or "--output" in option.names:
                how = f'-W "{" ".join(option.choices)}"' if option.choices else "-f"
                values.append(f'        {cases}) COMPREPLY=($(compgen {how} -- "$word")); return ;;')
            elif option.takes and "--watch" not in option.names:
                values.append(f"        {cases}) return ;;")
    return _BASH.format(
        commands=" ".join(parsers), values="\n".join(values), options="\n".join(options), shells=" ".join(SHELLS)
    )


def _zsh(parsers: Mapping[str, Parser], about: Mapping[str, str]) -> str:
    ends = {"ls": "'::name:_copyless_names'", "inspect": "':name:_copyless_names'", "run": "'*::program:_files'",
            "completion": f"':shell:({' '.join(SHELLS)})'"}  # fmt: skip
    options = []
    for command, parser in parsers.items():
        words = []
        for option in _options(parser):
            text = _for_zsh(option.about)
            values = (
                f"({' '.join(option.choices)})" if option.choices else "_files" if "--output" in option.names else " "
            )
            tail = f":value:{values}" if option.takes else ""
            words += [f"'{name}[{text}]{tail}'" for name in option.names]
        words += [ends[command]] if command in ends else []
        options.append(f"        {command}) _arguments -s {' '.join(words)} ;;")
    shown = "\n".join(f"        '{name}:{_for_zsh(about[name])}'" for name in parsers)
    return _ZSH.format(commands=shown, options="\n".join(options))


def _fish(parsers: Mapping[str, Parser], about: Mapping[str, str]) -> str:
    lines = []
    for command, parser in parsers.items():
        lines.append(f"complete -c copyless -n __fish_use_subcommand -a {command} -d '{_for_fish(about[command])}'")
        for option in _options(parser):
            names = " ".join(
                f"-l {name[2:]}" if name.startswith("--") else f"-s {name[1:]}" if len(name) == 2 else f"-o {name[1:]}"
                for name in option.names
            )
            tail = f" -x -a '{' '.join(option.choices)}'" if option.choices else " -r" if option.takes else ""
            seen = f"__fish_seen_subcommand_from {command}"
            lines.append(f"complete -c copyless -n '{seen}' {names}{tail} -d '{_for_fish(option.about)}'")
    return _FISH.format(lines="\n".join(lines), shells=" ".join(SHELLS))
