# The last lines of the live system, when its program has ended; for busybox sh, with the function say.

# say_end EXIT_CODE DISK_STATE_FILE
say_end() {
    case $1 in
        0) ;;
        137) say "the live system's program was killed: there may be too little memory" ;;
        *) say "the live system's program failed (exit code $1)" ;;
    esac
    state=
    read -r state 2> /dev/null < "$2"
    say "${state:-nothing was written}; restart in 60 s"
}
