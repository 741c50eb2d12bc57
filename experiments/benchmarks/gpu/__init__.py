"""The part `gpu` of the benchmark: the kernels checked and timed on a device.

floor          the least time that a device needs
case           what a case is: programs to compile, and what to do with them
inputs         random inputs, and the programs of kernel and scan
checks, races  whether a kernel's results are right, and always the same
peers          how each program of a layer is made
layers, training_step, torch_layers  what is timed
timing         microseconds per time step
cases          which cases, the most important first
worker         a process that runs cases
supervisor     starts workers; replaces one that crashes or hangs
part           all sections, one after the other; what is printed and saved
report         the tables at the end
picture        the figure
"""
