# Completion of wemixvisor's command lines for bash: the program itself is asked how the line may go on.
_wemixvisor() {
    local words=() word line last
    # bash takes --home=/srv apart; put it together again.
    for word in "${COMP_WORDS[@]:1:COMP_CWORD}"; do
        if ((${#words[@]})) && [[ $word == = || ${words[-1]} == ?*= ]]; then
            words[-1]+=$word
        else
            words+=("$word")
        fi
    done
    last=${words[-1]}
    COMPREPLY=()
    while IFS= read -r line; do
        case $line in
        :files)
            compopt -o filenames 2>/dev/null
            while IFS= read -r word; do COMPREPLY+=("$word"); done < <(compgen -f -- "${last#--*=}")
            ;;
        :directories)
            compopt -o filenames 2>/dev/null
            while IFS= read -r word; do COMPREPLY+=("$word"); done < <(compgen -d -- "${last#--*=}")
            ;;
        *)
            line=${line%%$'\t'*}
            [[ $line == *= ]] && compopt -o nospace 2>/dev/null
            # Only what stands behind the = is bash's word.
            [[ $last == *=* ]] && line=${line#*=}
            COMPREPLY+=("$line")
            ;;
        esac
    done < <(command wemixvisor complete "${words[@]}" 2>/dev/null)
}
complete -F _wemixvisor wemixvisor
