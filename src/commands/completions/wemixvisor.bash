# Completion of wemixvisor's command lines for bash: the program itself is asked how the line may go on.
_wemixvisor() {
    local words=() word line last before
    for word in "${COMP_WORDS[@]:1:COMP_CWORD}"; do
        # As the program will see it; where a shell would do more than that, it stays.
        if [[ $word == [\'\"~]* || $word == *\\* ]] && [[ $word != *[\$\`\;\&\|\<\>\(\)]* ]]; then
            eval "word=$word" 2>/dev/null
        fi
        # bash takes --home=/srv and a=http://b apart; put it together again.
        if ((${#words[@]})) && [[ $word == [=:] || ${words[-1]} == ?*[=:] ]]; then
            words[-1]+=$word
        else
            words+=("$word")
        fi
    done
    last=${words[-1]}
    # Only what stands behind the last = or : is bash's word.
    before=${last%"${last##*[=:]}"}
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
            COMPREPLY+=("${line#"$before"}")
            ;;
        esac
    done < <(command wemixvisor complete "${words[@]}" 2>/dev/null)
}
complete -F _wemixvisor wemixvisor
