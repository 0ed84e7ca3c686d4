EAPI=8

DESCRIPTION="Shows a text page by page, back and forth"
HOMEPAGE="https://www.greenwoodsoftware.com/less/"
SRC_URI="mirror://debian/pool/main/l/less/less_${PV}.orig.tar.gz"

LICENSE="GPL-3+"
SLOT="0"
KEYWORDS="amd64"
IUSE="pcre"

RDEPEND="pcre? ( dev-libs/libpcre2 )"
DEPEND="${RDEPEND}"

src_configure() {
	econf --with-regex=$(usex pcre pcre2 posix)
}

src_install() {
	dobin less lesskey lessecho
}
