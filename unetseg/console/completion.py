"""Completion of commands, options and their values in bash and zsh: scripts with all words in them.

    eval "$(unetseg completion bash)"        in ~/.bashrc
    eval "$(unetseg completion zsh)"         in ~/.zshrc, after compinit

A script asks no program while you type. It is written anew by the command after an update.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from unetseg.options.choices import COMMANDS, PATHS, choices

FLAGS = ("--help", "--version")
SHELLS = ("bash", "zsh")

BASH = r"""# unetseg's completion for bash: eval "$(unetseg completion bash)"
_unetseg() {
    local line="${COMP_LINE:0:COMP_POINT}" word command words before
    word="${line##*[[:space:]]}"
    command="${COMP_WORDS[1]}"
    COMPREPLY=()
    if [[ "$line" =~ ^[[:space:]]*[^[:space:]]+[[:space:]]+[^[:space:]]*$ ]]; then
        COMPREPLY=($(compgen -W "@NAMES@" -- "$word"))
        return
    fi
    case "$command" in
@CASES@
    *) return ;;
    esac
    before=""
    if [[ "$word" == *=* ]]; then
        before="${word%%=*}="
        case " @PATHS@ " in
        *" ${before%=} "*)
            compopt -o filenames 2>/dev/null
            local IFS=$'\n'
            COMPREPLY=($(compgen -f -- "${word#*=}"))
            return ;;
        esac
    fi
    local candidate
    for candidate in $(compgen -W "$words" -- "$word"); do
        if [[ -n "$before" ]]; then
            # readline completes what follows the "=" alone, where "=" breaks words
            [[ "$COMP_WORDBREAKS" == *=* ]] && candidate="${candidate#"$before"}"
            [[ -n "$candidate" ]] && COMPREPLY+=("$candidate")
        elif [[ "$candidate" != *=?* ]]; then
            COMPREPLY+=("$candidate")
            [[ "$candidate" == *= ]] && compopt -o nospace 2>/dev/null
        fi
    done
}
complete -F _unetseg unetseg
"""

ZSH = r"""#compdef unetseg
# unetseg's completion for zsh: eval "$(unetseg completion zsh)" after compinit
_unetseg() {
    local -a words_of names values
    if (( CURRENT == 2 )); then
        compadd -- @NAMES@
        return
    fi
    case "${words[2]}" in
@CASES@
    *) return ;;
    esac
    if [[ "$PREFIX" == *=* ]]; then
        local key="${PREFIX%%=*}"
        compset -P '*='
        if [[ " @PATHS@ " == *" $key "* ]]; then
            _files
            return
        fi
        values=(${${(M)words_of:#${key}=?*}#*=})
        compadd -- $values
    else
        names=(${(M)words_of:#*=})
        compadd -S '' -- $names
        compadd -- @FLAGS@
    fi
}
compdef _unetseg unetseg
"""


def script(shell: str, names: Sequence[str]) -> str:
    """Return the script for a shell.

    Args:
        shell: bash or zsh.
        names: of the commands.
    """
    cases = []
    for command in COMMANDS:
        options = choices(command)
        words = [f"{key}={value}" for key, values in options.items() for value in ("", *values)]
        line = f'words="{" ".join([*words, *FLAGS])}"' if shell == "bash" else f"words_of=({' '.join(words)})"
        cases.append(f"    {command}) {line} ;;")
    for command, arguments in (("completion", SHELLS), ("help", names)):
        offered = " ".join(arguments)
        line = f'words="{offered}"' if shell == "bash" else f"compadd -- {offered}; return"
        cases.append(f"    {command}) {line} ;;")
    text = {"bash": BASH, "zsh": ZSH}[shell]
    for mark, content in {
        "@NAMES@": " ".join(names),
        "@CASES@": "\n".join(cases),
        "@PATHS@": " ".join(PATHS),
        "@FLAGS@": " ".join(FLAGS),
    }.items():
        text = text.replace(mark, content)
    return text


def main(arguments: Sequence[str], names: Sequence[str]) -> int:
    """Print the script for the shell that is named; return the exit status."""
    if len(arguments) == 1 and arguments[0] in SHELLS:
        print(script(arguments[0], names), end="")
        return 0
    if arguments and arguments[0] in ("-h", "--help"):
        print(__doc__)
        return 0
    print(
        f"unetseg completion: {' '.join(arguments) or 'no shell'} is not accepted\n  accepted: {', '.join(SHELLS)}\n"
        '  try: eval "$(unetseg completion bash)"',
        file=sys.stderr,
    )
    return 2
