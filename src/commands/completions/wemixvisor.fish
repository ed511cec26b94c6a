# Completion of wemixvisor's command lines for fish: the program itself is asked how the line may go on.
function __wemixvisor_complete
    set -l words (commandline -opc)
    set -e words[1]
    set -l typed (commandline -ct)
    for line in (command wemixvisor complete $words "$typed" 2>/dev/null)
        switch $line
            case ':files'
                __fish_complete_path "$typed"
            case ':directories'
                __fish_complete_directories "$typed"
            case '*'
                echo $line
        end
    end
end
complete -c wemixvisor -f -a '(__wemixvisor_complete)'
