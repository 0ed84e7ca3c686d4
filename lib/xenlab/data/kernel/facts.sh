# What decides what a build gives, and the manifests of the kernels that are there.
# $1 archive of the sources   $2 store
[ -f "$1" ] || exit 44
# read once, when it is unpacked; again as soon as anybody has touched it
noted=
{ read -r digest noted < "$2/source/.digest" || :; } 2> /dev/null
if [ "$noted" = "$(stat -L -c '%d %i %s %.9Y %.9Z' -- "$1")" ]; then
    printf '%s\n' "$digest"
else
    sha256sum < "$1" | cut -c 1-64
fi
gcc --version 2> /dev/null | head -n 1 || :
echo
for manifest in "$2"/*/manifest; do
    [ -e "$manifest" ] || continue
    folder=${manifest%/manifest}
    printf 'key %s\n' "${folder##*/}"
    cat -- "$manifest"
done
