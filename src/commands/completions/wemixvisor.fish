# Completion of wemixvisor's command lines for fish: the program itself is asked how the line may go on.
function __wemixvisor_complete
    set -l words (commandline -opc)
    set -e words[1]
    set -l typed (commandline -ct)
    # Of --home=/srv the path is fish's own affair.
    set -l flag (string match -r -- '^--[^=]*=' "$typed")
    set -l path (string replace -r -- '^--[^=]*=' '' "$typed")
    for line in (command wemixvisor complete $words "$typed" 2>/dev/null)
        switch $line
            case ':files'
                # As of a command that nobody has said anything about.
                for file in (complete -C "__wemixvisor_nothing $path")
                    echo "$flag$file"
                end
            case ':directories'
                for directory in (__fish_complete_directories "$path")
                    echo "$flag$directory"
                end
            case '*'
                echo $line
        end
    end
end
complete -c wemixvisor -f -a '(__wemixvisor_complete)'
