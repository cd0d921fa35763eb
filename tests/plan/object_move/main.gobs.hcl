machine "app" { provider = dummy }

machine "db" {
  provider = dummy
  service "x" { tcp = "127.0.0.1:1" }
}

binding "chat" {
  from = machine.db.service.x
  to   = machine.app
}

output "at" { value = binding.chat.address }
