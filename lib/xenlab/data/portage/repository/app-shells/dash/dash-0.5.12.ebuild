EAPI=8

DESCRIPTION="A small POSIX shell"
HOMEPAGE="http://gondor.apana.org.au/~herbert/dash/"
SRC_URI="mirror://debian/pool/main/d/dash/dash_${PV}.orig.tar.gz"

LICENSE="BSD"
SLOT="0"
KEYWORDS="amd64"
IUSE="static"

src_configure() {
	econf --bindir="${EPREFIX}/opt/dash/bin" $(use_enable static)
}

src_install() {
	# /bin/sh of the base system stays what it is
	exeinto /opt/dash/bin
	doexe src/dash
}
