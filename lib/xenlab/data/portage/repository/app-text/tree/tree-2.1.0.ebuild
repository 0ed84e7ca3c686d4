EAPI=8

DESCRIPTION="Shows a folder and what is below it as a tree"
HOMEPAGE="http://mama.indstate.edu/users/ice/tree/"
SRC_URI="mirror://debian/pool/main/t/tree/tree_${PV}.orig.tar.gz"

LICENSE="GPL-2+"
SLOT="0"
KEYWORDS="amd64"

src_compile() {
	emake CC="${CHOST}-gcc" CFLAGS="${CFLAGS} -std=c11" LDFLAGS="${LDFLAGS}"
}

src_install() {
	dobin tree
}
