machine "app" { provider = dummy }

machine "report" { provider = dummy }

binding "chat" {
  from = "ocapn://abc.tls-rpk/s/Zmlyc3Q"
  to   = machine.app
}
