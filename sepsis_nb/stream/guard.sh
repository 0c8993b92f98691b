# $0: process of the broker; $1: folder to remove, or empty. Waits until its stdin closes, then stops the broker.
read _; kill -TERM $0; n=0
while kill -0 $0 && [ $n -lt 100 ]; do sleep .2; n=$((n+1)); done
[ -z "$1" ] || rm -rf "$1"
