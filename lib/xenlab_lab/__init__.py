"""The embedded lab: a virtual machine with an empty disk, a rescue system and a stage.

lab = Lab("lab", report=show)  # xenlab_lab.lab
lab.up()                       # rescue system at first; later what was booted last
subprocess.call(lab.ssh_argv("dom0", ["lsblk"]))
lab.boot("disk", wait=True)
lab.down()
"""
