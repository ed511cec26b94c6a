#compdef wemixvisor
# Completion of wemixvisor's command lines for zsh: the program itself is asked how the line may go on.
_wemixvisor() {
    local -a lines plain open
    local line word files
    lines=("${(@f)$(command wemixvisor complete "${(@Q)words[2,CURRENT-1]}" "${(Q)PREFIX}" 2>/dev/null)}")
    for line in "${lines[@]}"; do
        case $line in
        '') ;;
        :files) files=all ;;
        :directories) files=directories ;;
        *)
            word=${line%%$'\t'*}
            if [[ $line == *$'\t'* ]]; then
                line="${word//:/\\:}:${line#*$'\t'}"
            else
                line=${word//:/\\:}
            fi
            if [[ $word == *= ]]; then open+=("$line"); else plain+=("$line"); fi
            ;;
        esac
    done
    (($#open)) && _describe 'wemixvisor' open -S ''
    (($#plain)) && _describe 'wemixvisor' plain
    if [[ -n $files ]]; then
        [[ $PREFIX == --*=* ]] && compset -P '*='
        if [[ $files == directories ]]; then _files -/; else _files; fi
    fi
}
if [[ ${funcstack[1]} == _wemixvisor ]]; then
    _wemixvisor "$@"
else
    compdef _wemixvisor wemixvisor
fi
