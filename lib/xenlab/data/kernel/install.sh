# Put a copied kernel and its config in place: whole, compared, the old ones kept where asked.
# $1, $3 their checksums   $2, $4 their paths   $5 "yes" keeps the old ones   $6 release
printf '%s  %s\n' "$1" "$2.new" "$3" "$4.new" | sha256sum --check --quiet
for file in "$2" "$4"; do
    chmod 644 -- "$file.new"
    if [ -n "$5" ] && [ -e "$file" ] && ! cmp -s -- "$file" "$file.new"; then
        cp -p -- "$file" "$file.old"
    fi
done
# one after the other: whoever finds the config finds its kernel already
mv -f -- "$2.new" "$2"
mv -f -- "$4.new" "$4"
sync
[ -n "$5" ] || { : > "/lib/modules/$6/modules.order"; depmod -- "$6"; }
