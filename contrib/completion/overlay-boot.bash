# Completion of overlay-boot's commands for bash.

_overlay_boot_names() {
    command overlay-list 2>/dev/null | command awk 'NR > 1 { print $1 }'
}

# Words that are one of the given ones, configurations, or folders on the way to one.
_overlay_boot_reply() {
    local word
    COMPREPLY=()
    while IFS= read -r word; do
        COMPREPLY+=("$word")
    done < <(
        compgen -W "$1" -- "$cur"
        [[ -z $2 ]] || compgen -f -X "!$2" -- "$cur"
        [[ -z $2 ]] || compgen -d -S / -- "$cur"
    )
    if [[ ${COMPREPLY[0]-} == */ && ${#COMPREPLY[@]} -eq 1 ]]; then
        compopt -o nospace
    fi
    [[ -z $2 ]] || compopt -o filenames
}

_overlay_boot() {
    local cur=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD - 1]}
    local command=${COMP_WORDS[0]##*/} options="--help --version" files='*.conf'
    case $command in
        overlay-boot) options="--wait --foreground --check --help --version" ;;
        overlay-stop) options="--timeout --help --version" ;;
        overlay-list) options="--json --help --version" files= ;;
        overlay-share) options="--remove --help --version" ;;
        overlay-diff) options="--json --drop --help --version" ;;
        overlay-diskfile) files='*' ;;
    esac
    if [[ $cur == -* ]]; then
        _overlay_boot_reply "$options" ''
        return
    fi
    case $command in
        overlay-boot | overlay-diskfile | overlay-list) _overlay_boot_reply '' "$files" ;;
        overlay-stop)
            [[ $previous == --timeout ]] || _overlay_boot_reply "$(_overlay_boot_names)" "$files"
            ;;
        overlay-diff)
            if [[ $previous == --drop || $previous != -* && $COMP_CWORD -gt 1 ]] &&
                [[ ${COMP_WORDS[COMP_CWORD - 2]} != --drop ]]; then
                _overlay_boot_reply '' '*'
            else
                _overlay_boot_reply "$(_overlay_boot_names)" "$files"
            fi
            ;;
        overlay-share)
            if ((COMP_CWORD == 1)) || [[ $previous == --remove ]]; then
                _overlay_boot_reply '' '*'
            else
                _overlay_boot_reply "$(_overlay_boot_names)" '*.conf'
            fi
            ;;
        overlay-go)
            if ((COMP_CWORD == 1)); then
                _overlay_boot_reply "$(_overlay_boot_names)" "$files"
            else
                COMPREPLY=($(compgen -c -- "$cur"))
            fi
            ;;
    esac
}

complete -F _overlay_boot overlay-boot overlay-stop overlay-go overlay-list overlay-share \
    overlay-diskfile overlay-diff
