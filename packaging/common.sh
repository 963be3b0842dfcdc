# What the scripts here share; sourced by them in the top directory of the project.
# shellcheck shell=bash

say() {
    echo "$(basename "$0"): $*" >&2
}

# Names the files of the project, each ended by NUL: what git knows, with uncommitted changes and new files; without
# git everything but what is made here.
project_files() {
    if [ -e .git ]; then
        git ls-files -z --cached --others --exclude-standard --deduplicate
    else
        find . -type d \( -name '.?*' -o -name __pycache__ -o -name '*.egg-info' -o -path ./build -o -path ./dist \) -prune \
            -o -type f -print0
    fi
}

# copy_project DIRECTORY: the files of the project that are there.
copy_project() {
    mkdir -p "$1"
    project_files | while IFS= read -r -d '' file; do
        [ -e "$file" ] && printf '%s\0' "$file"
    done | tar --create --null --files-from=- | tar --extract --directory "$1"
}

# sign KEY OPTION...: has gpg sign with that key and no other, and without asking.
sign() {
    gpg --batch --yes --quiet --local-user "$1" --digest-algo SHA512 "${@:2}"
}
