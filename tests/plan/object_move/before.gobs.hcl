machine "app" { provider = dummy }

machine "db" {
  provider = dummy
  service "x" { tcp = "127.0.0.1:1" }
}

binding "chat" {
  from = "ocapn://abc.tls-rpk/s/Zmlyc3Q"
  to   = machine.app
}

output "at" { value = binding.chat.address }
