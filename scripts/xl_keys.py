#!/usr/bin/env python3
"""Print the keys that xl.cfg(5) documents: lib/xenlab/data/xl.cfg.keys is made so.

scripts/xl_keys.py /usr/share/man/man5/xl.cfg.5.gz > lib/xenlab/data/xl.cfg.keys
"""

import gzip
import re
import sys


def keys(page: str) -> set[str]:
    """The keys of a manual page in roff: items NAME=, those within a key's own text left out."""
    found, depth = set(), 0
    for line in page.splitlines():
        depth += line.startswith(".RS") - line.startswith(".RE")
        item = re.match(r'\.IX Item "([a-z][a-z0-9_]*)\s*=', line)
        if item and not depth:
            found.add(item[1])
    return found


def main() -> None:
    """Print the version of the page and, one a line, its keys."""
    with gzip.open(sys.argv[1], "rt", encoding="utf-8") as file:
        page = file.read()
    heading = re.search(r'^\.TH xl\.cfg "?5"? "?[0-9-]+"? "?([0-9]+\.[0-9.]+)', page, re.MULTILINE)
    print(f"# The keys of xl.cfg(5), Xen {heading[1] if heading else '?'}: scripts/xl_keys.py")
    print("\n".join(sorted(keys(page))))


if __name__ == "__main__":
    main()
