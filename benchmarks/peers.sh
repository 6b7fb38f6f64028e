#!/usr/bin/env bash
# Makes the environments of the peers that archzoo is compared with: .venv-peers/transformers, easydel and maxtext,
# each with the versions of requirements/NAME.txt. An environment that has them already is left alone.
#
#   benchmarks/peers.sh              all of them
#   benchmarks/peers.sh easydel      one
set -uo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
home=$(dirname "$here")/.venv-peers

# The minor versions of Python 3 that a peer runs on, the one that its versions were pinned with first.
declare -A minors=([transformers]="11 12 13" [easydel]="11 12 13" [maxtext]="12 13")

usable() { # PYTHON MINOR: whether it is that Python and can make environments
    "$1" -c "import sys, venv, ensurepip; sys.exit(sys.version_info[:2] != (3, $2))" 2>/dev/null
}

find_python() { # MINOR...: prints the first that is there, by name or among pyenv's
    local minor python
    for minor in "$@"; do
        for python in "python3.$minor" python3 "${PYENV_ROOT:-$HOME/.pyenv}/versions/3.$minor".*/bin/python; do
            if usable "$python" "$minor"; then
                echo "$python"
                return
            fi
        done
    done
    return 1
}

make_peer() { # NAME
    local name=$1 folder=$home/$1 wanted=$here/requirements/$1.txt python
    if cmp -s "$wanted" "$folder/requirements.txt"; then
        echo "$name: $folder is up to date"
        return
    fi
    # shellcheck disable=SC2086 # a list of words
    if ! python=$(find_python ${minors[$name]}); then
        echo "$name: needs Python 3.${minors[$name]// / or 3.} with venv (python3.X on the path, or one of pyenv's)" >&2
        return 1
    fi
    rm -rf "$folder"
    if "$python" -m venv "$folder" && "$folder/bin/python" -m pip install --quiet --requirement "$wanted"; then
        cp "$wanted" "$folder/requirements.txt" # the mark of a finished installation
        echo "$name: made $folder with $("$folder/bin/python" -V)"
    else
        echo "$name: the installation of $wanted failed" >&2
        return 1
    fi
}

failed=0
[[ $# -gt 0 ]] || set -- transformers easydel maxtext
for name in "$@"; do
    if [[ -z ${minors[$name]:-} ]]; then
        echo "peers.sh: no peer is called '$name': transformers, easydel or maxtext" >&2
        exit 2
    fi
    make_peer "$name" || failed=1
done
exit "$failed"
