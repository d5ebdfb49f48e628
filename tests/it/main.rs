mod postgres;
mod server;
