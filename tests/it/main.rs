mod postgres;
mod restore;
mod server;
