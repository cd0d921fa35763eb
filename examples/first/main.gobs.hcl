# The smallest project: one machine, no account. `dummy` machines are `hob` processes on this host.

machine "hello" {
  provider = dummy
  size     = "small" # change it and apply again: an update in place
}

output "directory" {
  value       = machine.hello.directory
  description = "Where the machine keeps its files."
}
