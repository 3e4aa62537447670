#compdef overlay-boot overlay-stop overlay-go overlay-list overlay-share overlay-diskfile overlay-diff
# Completion of overlay-boot's commands for zsh.

_overlay_boot_names() {
  local -a names
  names=(${(f)"$(overlay-list 2>/dev/null | awk 'NR > 1 { print $1 }')"})
  _describe 'subhost that runs' names
}

_overlay_boot_conf() {
  _files -g '*.conf(-.)'
}

_overlay_boot_either() {
  _alternative 'names:subhost:_overlay_boot_names' 'files:configuration:_overlay_boot_conf'
}

case $service in
  overlay-boot)
    _arguments : \
      '(--wait --foreground --check)--wait[return when the services have been started]' \
      '(--wait --foreground --check)--foreground[stay until the subhost ends]' \
      '(--wait --foreground --check)--check[print what a boot would do]' \
      '(- *)--help[print help]' '(- *)--version[print the version]' \
      '1:configuration:_overlay_boot_conf'
    ;;
  overlay-stop)
    _arguments : \
      '--timeout[grace before what does not end is killed]:seconds:' \
      '(- *)--help[print help]' '(- *)--version[print the version]' \
      '1:subhost:_overlay_boot_either'
    ;;
  overlay-go)
    _arguments : '(- *)--help[print help]' '(- *)--version[print the version]' '1:subhost:_overlay_boot_either' '*::command:_normal'
    ;;
  overlay-list)
    _arguments : '--json[print an array of objects]' '(- *)--help[print help]' '(- *)--version[print the version]'
    ;;
  overlay-share)
    _arguments : '--remove[undo it]' '(- *)--help[print help]' '(- *)--version[print the version]' \
      '1:path of the main host:_files' '2:subhost:_overlay_boot_either'
    ;;
  overlay-diff)
    _arguments : '(--drop)--json[print one object]' '(- *)--help[print help]' \
      '(--json)--drop[remove its own copy of a file]:path in the subhost:_files' \
      '1:subhost:_overlay_boot_either' '2:path in the subhost:_files'
    ;;
  overlay-diskfile)
    _arguments : '(- *)--help[print help]' '(- *)--version[print the version]' '1:mount point or path:_files' '2:disk image:_files' \
      '3:partition:'
    ;;
esac
