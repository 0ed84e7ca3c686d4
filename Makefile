# Every target installs what it needs itself; `make` alone says what there is.
SHELL := /bin/bash
bin := .venv/bin
root := $(if $(filter 0,$(shell id -u)),--allow-root)

.PHONY: help lab jupyter docs test test-end-to-end test-gentoo test-faults test-machines test-fast lint check clean bootstrap bootstrap-docs bootstrap-test

help:
	@echo 'make lab        from an empty virtual disk to a running Xen host with its guests'
	@echo 'make lab SITE=lab-gentoo  the same with Portage and OpenRC'
	@echo 'make jupyter    JupyterLab on the chapters, against the running lab'
	@echo 'make docs       the pages, from the chapters as they ran here'
	@echo 'make test       lint, types, all tests up to the main job: an empty disk becomes a Xen host'
	@echo 'make test-end-to-end  the whole lab: three guests, all chapters, networks, JupyterLab; two other machines'
	@echo 'make test-gentoo  Portage and OpenRC: in roots of their own, then the whole lab'
	@echo 'make test-faults  the power fails at random moments of the main job'
	@echo 'make test-machines  the main job on other machines: eight as people have them; other disks and cards'
	@echo 'make test-fast  what takes no whole run: ruff, mypy, unit, ssh and notebook tests'
	@echo 'make lint       ruff fixes what it can, reports the rest'
	@echo 'make clean      takes the lab down, removes .venv and tool caches; runs/ and the lab stay'

# told to everything that make lab starts: how long it has gone on
lab: export XENLAB_BEGAN := $(shell date +%s)
lab: bootstrap
	@scripts/lab $(SITE)

jupyter: bootstrap
	@$(bin)/jupyter lab $(root) --ServerApp.root_dir=notebooks \
		--LabApp.news_url=None --LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate

docs: bootstrap-docs
	@$(bin)/python docs/collect.py
	@$(bin)/sphinx-build -q -W --keep-going -b html docs docs/_build/html
	@echo docs/_build/html/index.html

test: check
	@scripts/test

test-end-to-end: bootstrap-test
	@$(bin)/pytest --timeout 5400 tests/end_to_end
	@$(bin)/pytest -k 'hoster or mini-pc' tests/machines/test_profiles.py

test-fast: check
	@$(bin)/pytest --numprocesses auto --maxprocesses 4 --dist loadfile tests/unit tests/ssh tests/notebooks

lint: bootstrap-test
	@$(bin)/ruff format .
	@$(bin)/ruff check --fix .

test-gentoo: bootstrap-test
	@$(bin)/pytest --timeout 5400 tests/gentoo

test-faults: bootstrap-test
	@$(bin)/pytest tests/faults

test-machines: bootstrap-test
	@$(bin)/pytest --timeout 5400 tests/machines

check: bootstrap-test
	@$(bin)/ruff format --check .
	@$(bin)/ruff check .
	@$(bin)/mypy
	@$(bin)/lint-imports --no-cache

clean:
	@if [ -x $(bin)/xenlab ]; then $(bin)/xenlab lab down; fi
	@rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis lib/xenlab.egg-info
	@find lib tests bench -name __pycache__ -prune -exec rm -rf {} +

bootstrap:
	@scripts/bootstrap

bootstrap-docs:
	@scripts/bootstrap docs

bootstrap-test:
	@scripts/bootstrap test
