machine "app" {
  provider = dummy
  service "chat" { tcp = "127.0.0.1:1" }
}

machine "silent" {
  provider = dummy
  hob { enabled = false }
}

machine "report" { provider = dummy }

# The name is taken.
binding "chat" {
  from = "ocapn://abc.tls-rpk/s/Zmlyc3Q"
  to   = machine.app
}

binding "unheard" {
  from = "ocapn://abc.tls-rpk/s/Zmlyc3Q"
  to   = machine.silent
}

binding "wide" {
  from = "ocapn://abc.tls-rpk/s/Zmlyc3Q"
  to   = machine.app
}

binding "limited" {
  from = binding.wide
  to   = machine.report
  attenuate { connections_max = 3 }
}
